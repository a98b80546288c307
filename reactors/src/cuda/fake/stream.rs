//! A fake device's line of work: done up to one mark further each time somebody looks, or behind
//! everybody's back once somebody wants to be rung.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::driver::{Event, Failure, Stream};
use super::super::plan::{Launch, Range};
use super::{Shared, lock, lost};
use crate::doorbell::Doorbell;

/// How long a device takes for what nobody looks at.
const PAUSE: Duration = Duration::from_micros(200);

#[derive(Debug)]
pub(super) struct FakeStream {
    shared: Arc<Shared>,
    queue: Arc<Mutex<Queue>>,
    marks: u64,
    device: u32,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    passed: u64,
}

#[derive(Debug)]
enum Item {
    Copy(Vec<Range>),
    Mark(u64),
    /// Nothing behind it is done before this recording of the event is.
    Wait(Event, u64),
    Record(Event, u64),
}

impl FakeStream {
    pub(super) fn new(shared: Arc<Shared>, device: u32) -> Self {
        Self { shared, queue: Arc::default(), marks: 0, device }
    }
}

impl Stream for FakeStream {
    fn wait(&mut self, event: &Event) -> Result<(), Failure> {
        if self.shared.faults().no_wait {
            return Err(Failure::refused("cuStreamWaitEvent", "it was asked to fail"));
        }
        let recorded = self.shared.event(event)?.recorded;
        lock(&self.queue).items.push_back(Item::Wait(*event, recorded));
        Ok(())
    }

    fn record(&mut self, event: &Event) -> Result<(), Failure> {
        if self.shared.faults().no_record {
            return Err(Failure::refused("cuEventRecord", "it was asked to fail"));
        }
        let recorded = self.shared.event(event)?.recorded + 1;
        self.shared.change(event, |state| state.recorded = recorded);
        lock(&self.queue).items.push_back(Item::Record(*event, recorded));
        Ok(())
    }

    unsafe fn enqueue(&mut self, launch: &Launch, _blocks: u32) -> Result<(), Failure> {
        if self.shared.faults().no_launch {
            return Err(Failure::refused("cuLaunchKernel", "it was asked to fail"));
        }
        self.shared.launches.fetch_add(1, Ordering::Relaxed);
        let ranges = match launch {
            Launch::Copy(range) => vec![*range],
            Launch::Pages(pages) => pages.clone(),
            Launch::Even(pages) => pages.ranges().collect(),
        };
        let may_touch = |addr| self.shared.may_touch(self.device, addr);
        if !ranges.iter().all(|range| may_touch(range.from) && may_touch(range.to)) {
            lock(&self.shared.faults).is_lost = true;
        }
        lock(&self.queue).items.push_back(Item::Copy(ranges));
        Ok(())
    }

    fn mark(&mut self) -> Result<u64, Failure> {
        if self.shared.faults().no_mark {
            return Err(Failure::refused("cuEventRecord", "it was asked to fail"));
        }
        self.marks += 1;
        lock(&self.queue).items.push_back(Item::Mark(self.marks));
        Ok(self.marks)
    }

    fn passed(&mut self) -> Result<u64, Failure> {
        let faults = self.shared.faults();
        if faults.no_answer {
            return Err(Failure::refused("cuEventQuery", "it was asked to fail"));
        }
        let mut queue = lock(&self.queue);
        if faults.is_lost {
            queue.items.clear();
            return Err(lost());
        }
        if !faults.is_stalled {
            queue.advance(&self.shared);
        }
        Ok(queue.passed)
    }

    fn ring_behind(&mut self, doorbell: &Arc<Doorbell>) -> Result<(), Failure> {
        let (shared, queue) = (self.shared.clone(), self.queue.clone());
        let (doorbell, mark) = (doorbell.clone(), self.marks);
        std::thread::spawn(move || {
            // A device that is lost rings nobody.
            while !shared.faults().is_lost {
                std::thread::sleep(PAUSE);
                // Nobody waits for a stream that was dropped.
                if Arc::strong_count(&queue) == 1 {
                    return;
                }
                if shared.faults().is_stalled {
                    continue;
                }
                let mut queue = lock(&queue);
                while queue.passed < mark && queue.advance(&shared) {}
                if queue.passed >= mark {
                    return doorbell.ring();
                }
            }
        });
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Failure> {
        let faults = self.shared.faults();
        if faults.no_answer {
            return Err(Failure::refused("cuStreamSynchronize", "it was asked to fail"));
        }
        loop {
            let mut queue = lock(&self.queue);
            if self.shared.faults().is_lost {
                queue.items.clear();
                return Err(lost());
            }
            while queue.advance(&self.shared) {}
            if queue.items.is_empty() {
                return Ok(());
            }
            // It waits for another's event.
            drop(queue);
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for FakeStream {
    /// A device goes on with what it was given, whoever has forgotten it.
    fn drop(&mut self) {
        if lock(&self.queue).items.is_empty() {
            return;
        }
        let (shared, queue) = (self.shared.clone(), self.queue.clone());
        std::thread::spawn(move || {
            while !shared.faults().is_lost && !lock(&queue).items.is_empty() {
                std::thread::sleep(PAUSE);
                if !shared.faults().is_stalled {
                    lock(&queue).advance(&shared);
                }
            }
        });
    }
}

impl Queue {
    /// Does what stands before the next mark; `false` where there is nothing.
    fn advance(&mut self, shared: &Shared) -> bool {
        while let Some(item) = self.items.pop_front() {
            match item {
                Item::Wait(event, recorded) => {
                    if shared.event(&event).is_ok_and(|state| state.completed < recorded) {
                        self.items.push_front(item);
                        return false;
                    }
                }
                Item::Record(event, recorded) => {
                    shared.change(&event, |state| state.completed = recorded);
                }
                Item::Mark(mark) => {
                    self.passed = mark;
                    return true;
                }
                Item::Copy(ranges) => {
                    for Range { from, to, len } in ranges {
                        // SAFETY: who enqueued it promised that both ends live until a later mark
                        // has passed, or until `drain`, which leaves nothing here.
                        unsafe { shared.copy(from, to, len) };
                    }
                }
            }
        }
        false
    }
}
