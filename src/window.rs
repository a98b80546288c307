//! Credits of one path, in requests and in bytes: what may be under way at a time. Pure.

/// Counts what is under way against two bounds.
#[derive(Debug)]
pub(crate) struct Window {
    requests: usize,
    bytes: usize,
    requests_max: usize,
    bytes_max: usize,
}

impl Window {
    pub(crate) fn new(requests_max: usize, bytes_max: usize) -> Self {
        Self { requests: 0, bytes: 0, requests_max, bytes_max }
    }

    /// Takes credit for a request of `bytes`. One request always fits into an empty window.
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        let fits = self.requests < self.requests_max && self.bytes + bytes <= self.bytes_max;
        let taken = fits || self.requests == 0;
        if taken {
            self.requests += 1;
            self.bytes += bytes;
        }
        taken
    }

    /// Gives back what [`Window::take`] took.
    pub(crate) fn give(&mut self, bytes: usize) {
        debug_assert!(self.requests > 0 && self.bytes >= bytes, "given back twice");
        self.requests = self.requests.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_hold_and_a_giant_still_passes_alone() {
        let mut window = Window::new(2, 100);
        assert!(window.take(1000), "an empty window takes anything");
        assert!(!window.take(1));
        window.give(1000);
        assert!(window.take(60));
        assert!(!window.take(41));
        assert!(window.take(40));
        assert!(!window.take(0), "no third request");
        window.give(60);
        assert!(window.take(60));
    }
}
