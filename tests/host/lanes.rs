//! Lanes whose other end lies: indices, words, numbers and addresses that no honest peer writes.
//! What isn't permitted changes nothing; a broken lane is closed, and nobody else notices.

use kvrail::{Access, Engine, Region};
use rustix::process::Signal;

use super::process::Process;
use super::raw::{
    CLOSED, Lanes, REPLY_TAIL, REQUEST_HEAD, REQUEST_TAIL, RING, Raw, SEALED, memfd, words,
};
use super::{Honest, contents, engine, fill, pattern, region, run};

const LEN: usize = 8192;

/// A stranger with a lane, an offered source (number 1) and what it may write.
struct Rig {
    victim: Engine,
    honest: Honest,
    target: Region,
    hidden: [Region; 2],
}

impl Rig {
    async fn new() -> Self {
        let victim = engine();
        let honest = Honest::of(&victim).await;
        let target = region(&victim, LEN, Access::WRITE);
        let hidden = [Access::READ, Access::LOCAL].map(|access| region(&victim, LEN, access));
        hidden.iter().chain([&target]).for_each(|region| fill(region, &pattern(9, LEN)));
        Self { victim, honest, target, hidden }
    }

    fn stranger(&self) -> (Raw, Lanes) {
        let raw = Raw::to(self.victim.name());
        let lanes = raw.connected();
        let fd = memfd(&pattern(1, LEN), SEALED);
        assert_eq!(raw.offer(1, LEN as u64, Some(std::os::fd::AsFd::as_fd(&fd))), None);
        (raw, lanes)
    }

    /// Nothing but the target's bytes, and those only where `changed`, is other than before.
    async fn is_unhurt(&mut self, changed: bool) {
        assert_eq!(contents(&self.target) == pattern(9, LEN), !changed);
        assert!(self.hidden.iter().all(|region| contents(region) == pattern(9, LEN)));
        self.honest.is_served().await;
    }
}

#[test]
fn indices_that_lie_close_the_lane() {
    run(async {
        let mut rig = Rig::new().await;
        for head in [RING + 1, u64::MAX, 1 << 63] {
            let (_raw, lanes) = rig.stranger();
            lanes.set(0, REQUEST_HEAD, head);
            lanes.is_closed(0);
        }
        // Backwards.
        let (_raw, lanes) = rig.stranger();
        lanes.ask(0, &[words::copy(1, 77, 0, rig.target.addr(), 1); 3]);
        for _ in 0..6 {
            lanes.reply(0).unwrap();
        }
        lanes.set(0, REQUEST_HEAD, 1);
        lanes.is_closed(0);
        // Replies taken that were never given.
        let (_raw, lanes) = rig.stranger();
        lanes.set(0, REPLY_TAIL, 5);
        lanes.ask(0, &[words::copy(1, 77, 0, rig.target.addr(), 1)]);
        lanes.is_closed(0);
        // Closed, with requests in it.
        let (_raw, lanes) = rig.stranger();
        lanes.set(0, CLOSED, 1);
        lanes.ask(0, &[words::copy(1, 1, 0, rig.target.addr(), LEN as u64)]);
        rig.is_unhurt(false).await;
    });
}

#[test]
fn words_that_mean_nothing_close_the_lane() {
    run(async {
        let mut rig = Rig::new().await;
        let addr = rig.target.addr();
        let open = [words::COPY, 1, 77, 0, addr, 1, 0, 0];
        let nonsense: [&[[u64; 8]]; 8] = [
            &[[0; 8]],
            &[[u64::MAX; 8]],
            &[[words::CANCEL | words::LAST; 8]],
            &[[words::BODY, 1, 2, 3, 4, 5, 6, 7]],
            // Longer than any event.
            &[[words::EVENT, 1, 1 << 20, 0, 0, 0, 0, 0]],
            // A body that never comes.
            &[[words::EVENT, 1, 100, 0, 0, 0, 0, 0], words::copy(2, 1, 0, addr, 1)],
            &[[words::EVENT, 1, 100, 0, 0, 0, 0, 0], [words::CANCEL, 1, 0, 0, 0, 0, 0, 0]],
            // Another part, where the first is not over.
            &[open, words::copy(2, 77, 0, addr, 1)],
        ];
        for requests in nonsense {
            let (_raw, lanes) = rig.stranger();
            lanes.ask(0, requests);
            lanes.is_closed(0);
        }
        rig.is_unhurt(false).await;
    });
}

#[test]
fn what_is_not_permitted_is_refused_one_by_one() {
    run(async {
        let mut rig = Rig::new().await;
        let (_raw, lanes) = rig.stranger();
        let (addr, len) = (rig.target.addr(), LEN as u64);
        let refused = |requests: &[[u64; 8]], verdict: u64| {
            lanes.ask(0, requests);
            for request in requests {
                assert_eq!(lanes.reply(0), Some(words::failed(request[1], 0, verdict)));
                assert_eq!(lanes.reply(0), Some([words::DONE, request[1], 1, words::OK]));
            }
        };
        let targets = [
            (0, 1),
            (addr - 1, 2),
            (addr, len + 1),
            (addr, 0),
            (addr, u64::MAX),
            (u64::MAX, 1),
            (rig.hidden[0].addr(), 1),
            (rig.hidden[1].addr(), 1),
        ];
        refused(&targets.map(|(addr, len)| words::copy(3, 1, 0, addr, len)), words::REFUSED);
        let sources = [(0, 0), (2, 0), (u64::MAX, 0), (1, len), (1, u64::MAX), (1, len - 7)];
        let copies = sources.map(|(source, at)| words::copy(4, source, at, addr, 8));
        refused(&copies, words::UNREADABLE);
        rig.is_unhurt(false).await;
        lanes.ask(0, &[words::copy(5, 1, 0, addr, len)]);
        assert_eq!(lanes.reply(0), Some([words::DONE, 5, 1, words::OK]));
        assert!(contents(&rig.target) == pattern(1, LEN));
        rig.is_unhurt(true).await;
    });
}

#[test]
fn of_a_list_what_is_permitted_is_copied_and_the_rest_is_refused_one_by_one() {
    run(async {
        let mut rig = Rig::new().await;
        let (_raw, lanes) = rig.stranger();
        let (addr, unit) = (rig.target.addr(), 16);
        let list = |part: u64, len: u64, count: u64| {
            [words::LIST | words::LAST, part, 1, 0, addr, len | (count << 32), 0, 0]
        };
        let listed = |copies: &[(u64, u64)]| {
            let mut entry = [words::LISTED, 0, 0, 0, 0, 0, 0, 0];
            for (word, (from, to)) in entry[1..].iter_mut().zip(copies) {
                *word = (from / unit) | ((to / unit) << 32);
            }
            entry
        };
        let whole = LEN as u64;
        // The second goes beyond the target, the third comes from beyond the source.
        let copies = [(0, 4096), (4096, 1 << 35), (whole, 0), (4096, 0)];
        lanes.ask(0, &[list(1, 4096, 4), listed(&copies)]);
        assert_eq!(lanes.reply(0), Some(words::failed(1, 1, words::REFUSED)));
        assert_eq!(lanes.reply(0), Some(words::failed(1, 2, words::UNREADABLE)));
        assert_eq!(lanes.reply(0), Some([words::DONE, 1, 4, words::OK]));
        let stranger = pattern(1, LEN);
        let swapped = [&stranger[4096..], &stranger[..4096]].concat();
        assert!(contents(&rig.target) == swapped);
        lanes.ask(0, &[list(2, 0, 2), listed(&[]), list(3, u32::MAX.into(), 1), listed(&[(0, 0)])]);
        for (part, index) in [(2, 0), (2, 1), (3, 0)] {
            assert_eq!(lanes.reply(0), Some(words::failed(part, index, words::REFUSED)));
            if (part, index) != (2, 0) {
                let ended = index + 1;
                assert_eq!(lanes.reply(0), Some([words::DONE, part, ended, words::OK]));
            }
        }
        for broken in [
            &[list(1, 16, 0)][..],
            &[list(1, 16, 1601)],
            &[listed(&[])],
            &[list(1, 16, 8), list(1, 16, 8)],
            &[list(1, 16, 8), words::copy(1, 1, 0, addr, 1)],
            &[list(1, 16, 8), [words::BODY; 8]],
        ] {
            let (_raw, lanes) = rig.stranger();
            lanes.ask(0, broken);
            lanes.is_closed(0);
        }
        rig.is_unhurt(true).await;
    });
}

#[test]
fn cancelling_in_any_order_is_answered_once_a_part() {
    run(async {
        let rig = Rig::new().await;
        let (_raw, lanes) = rig.stranger();
        let addr = rig.target.addr();
        let open = |part: u64| [words::COPY, part, 1, 0, addr, 8, 0, 0];
        let cancel = |part: u64| [words::CANCEL, part, 0, 0, 0, 0, 0, 0];
        // Nobody knows part 1; part 2 is open and ends by it, and opens anew.
        lanes.ask(0, &[cancel(1), open(2), cancel(2), cancel(2), open(2), cancel(2)]);
        let mut ended = Vec::new();
        while ended.len() < 2 {
            let [kind, part, ..] = lanes.reply(0).unwrap();
            assert_eq!(part, 2);
            ended.extend((kind == words::DONE).then_some(part));
        }
        lanes.ask(0, &[words::copy(3, 1, 0, addr, 8)]);
        assert_eq!(lanes.reply(0), Some([words::DONE, 3, 1, words::OK]));
    });
}

#[test]
fn events_that_mean_nothing_are_refused_and_the_lane_goes_on() {
    run(async {
        let rig = Rig::new().await;
        let (_raw, lanes) = rig.stranger();
        let event = |part: u64, len: u64| [words::EVENT, part, len, 0, 0, 0, 0, 0];
        let body = [words::BODY; 8];
        lanes.ask(0, &[event(1, 0), event(2, 56), body, event(3, 57), body, body]);
        for part in 1..=3 {
            assert_eq!(lanes.reply(0), Some([words::DONE, part, 0, words::REFUSED]));
        }
        // A body that is never finished waits, and ends with the session.
        lanes.ask(0, &[event(4, 8192), body]);
        assert!(rig.victim.try_notification().is_none());
    });
}

/// In a process of its own, whose processor time is its own.
#[test]
fn a_stranger_that_takes_no_replies_costs_nothing() {
    run(async {
        let (mut child, name) = Process::start("");
        let target = child.region("allocate 8192 both");
        let ours = engine();
        let peer = ours.open(&name).await.unwrap();
        let near = region(&ours, LEN, Access::LOCAL);
        fill(&near, &pattern(3, LEN));
        let mut raws = Vec::new();
        for _ in 0..3 {
            let raw = Raw::to(&name);
            let lanes = raw.connected();
            let mut sent = 0;
            // As many refusals as fit into every queue, and a full ring of requests behind them.
            while sent < 4 * RING {
                let taken = lanes.get(0, REQUEST_TAIL);
                let before = (sent, taken);
                let room = RING - (sent - taken);
                lanes.ask(0, &vec![words::copy(1, 77, 0, target.addr, 1); room as usize]);
                sent += room;
                std::thread::sleep(std::time::Duration::from_millis(50));
                if (sent, lanes.get(0, REQUEST_TAIL)) == before {
                    break;
                }
            }
            assert!(lanes.get(0, REQUEST_HEAD) - lanes.get(0, REQUEST_TAIL) > 0, "a request waits");
            raws.push((raw, lanes));
        }
        let before = child.cpu_ticks();
        std::thread::sleep(std::time::Duration::from_secs(2));
        let used = child.cpu_ticks() - before;
        // Two seconds of spinning are 200 ticks a shard; a look each 10 ms is none or few.
        assert!(used < 60, "{used} ticks of 10 ms in two seconds");
        let mut batch = kvrail::Batch::new(&peer);
        batch.write(&near.share(0..LEN).unwrap(), target.addr);
        ours.transfer(batch).await.unwrap();
        assert_eq!(child.ask(&format!("check {} 3", target.number)), "same");
        child.signal(Signal::KILL);
    });
}

#[test]
fn parts_that_wait_behind_a_long_copy_end_in_their_order() {
    run(async {
        let mut rig = Rig::new().await;
        let (raw, lanes) = rig.stranger();
        const LONG: usize = 64 << 20;
        let long = region(&rig.victim, LONG, Access::WRITE);
        let bytes = pattern(4, LONG);
        let fd = memfd(&bytes, SEALED);
        assert_eq!(raw.offer(2, LONG as u64, Some(std::os::fd::AsFd::as_fd(&fd))), None);
        lanes.ask(0, &[words::copy(1, 2, 0, long.addr(), LONG as u64)]);
        let mut sent = 0;
        // Refusals behind it, whose parts can end only after it.
        let mut done = Vec::new();
        while done.len() < 5_000 {
            let room = RING - (lanes.get(0, REQUEST_HEAD) - lanes.get(0, REQUEST_TAIL));
            let more = room.min(5_000 - sent);
            let copy = |part| words::copy(10 + part, 77, 0, long.addr(), 1);
            lanes.ask(0, &(sent..sent + more).map(copy).collect::<Vec<_>>());
            sent += more;
            let [kind, part, ..] = lanes.reply(0).unwrap();
            done.extend((kind == words::DONE).then_some(part));
        }
        let expected: Vec<_> = std::iter::once(1).chain(10..10 + 4_999).collect();
        assert!(done == expected, "parts end in their order");
        assert!(contents(&long) == bytes);
        rig.is_unhurt(false).await;
    });
}
