//! A trace of requests, replayed as transfers: each moves its blocks when it arrives.

use std::path::Path;

use serde_json::Value;

/// What the example's model keeps of 512 tokens, which is a block of the trace: 23,040 bytes each.
pub const BLOCK_BYTES: u64 = 512 * 23_040;

/// Requests in the order of their arrival.
#[derive(PartialEq, Eq, Debug)]
pub struct Trace {
    requests: Vec<Request>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Request {
    arrival_ms: u64,
    blocks: usize,
}

impl Trace {
    /// Reads lines of JSON with a `timestamp` in milliseconds and a list `hash_ids`, one a block.
    ///
    /// # Errors
    /// The file can't be read, or a line is something else.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| format!("the trace {}: {error}", path.display()))?;
        Self::read(&text).map_err(|error| format!("the trace {}: {error}", path.display()))
    }

    fn read(text: &str) -> Result<Self, String> {
        let lines = text.lines().filter(|line| !line.trim().is_empty()).enumerate();
        let requests = lines.map(|(number, line)| {
            request(line).ok_or_else(|| {
                format!("line {} has no timestamp or no hash_ids, or is no JSON", number + 1)
            })
        });
        let mut requests: Vec<_> = requests.collect::<Result<_, _>>()?;
        requests.sort_by_key(|request| request.arrival_ms);
        match requests.is_empty() {
            true => Err("it has no request".to_owned()),
            false => Ok(Self { requests }),
        }
    }

    /// Its first seconds in the words of the drivers: `BLOCK MS:BLOCKS,MS:BLOCKS,...`.
    pub fn words(&self, seconds: f64) -> String {
        let until_ms = self.requests[0].arrival_ms as f64 + seconds * 1e3;
        let begun = self.requests.iter().filter(|one| (one.arrival_ms as f64) < until_ms);
        let words = begun.map(|one| format!("{}:{}", one.arrival_ms, one.blocks));
        format!("{BLOCK_BYTES} {}", words.collect::<Vec<_>>().join(","))
    }
}

fn request(line: &str) -> Option<Request> {
    let line: Value = serde_json::from_str(line).ok()?;
    let blocks = line["hash_ids"].as_array()?.len().max(1);
    Some(Request { arrival_ms: line["timestamp"].as_u64()?, blocks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_the_first_seconds_of_them_asked_for() {
        let lines = [
            r#"{"timestamp": 3000, "input_length": 9, "hash_ids": [0]}"#,
            r#"{"timestamp": 0, "hash_ids": [1, 2, 3]}"#,
        ];
        let trace = Trace::read(&lines.join("\n")).unwrap();
        assert_eq!(trace.words(3.0), "11796480 0:3");
        assert_eq!(trace.words(3.1), "11796480 0:3,3000:1");
    }

    #[test]
    fn what_is_no_trace_is_told_by_its_line() {
        assert!(Trace::read("").is_err());
        let error = Trace::read("{\"timestamp\": 1, \"hash_ids\": [1]}\nnonsense").unwrap_err();
        assert!(error.contains("line 2"), "{error}");
        let error = Trace::load(Path::new("/nowhere")).unwrap_err();
        assert!(error.contains("/nowhere"), "{error}");
    }
}
