//! Connections behind a closed gate: whatever they say without a good pass, they get nothing but
//! refusals, and nothing is stored.

use std::sync::Arc;

use kvrail_reactors::region::Slice;
use kvrail_reactors::vector::Vector;
use proptest::prelude::*;

use crate::auth::{Entrance, Gate, PASS_BYTES, PeerId, Policy};
use crate::memory::{Operation, Regions, RegionsView, tests::region};
use crate::path::served::Service;
use crate::path::tcp::LaneName;
use crate::path::tcp::server::ServerStream;
use crate::path::tcp::wire::{Header, STATUS_BYTES, Status, Verb, Version};

const LEN: usize = 8192;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_stranger_stores_and_reads_nothing(
        frames in prop::collection::vec((0u8..7, any::<bool>(), 0u64..200, 0u64..9000), 1..8),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (regions, memory) = (Arc::new(Regions::default()), region(LEN));
        regions.insert(memory.clone()).unwrap();
        let gate = Arc::new(Gate::new(true, false, Policy::Open));
        // One was given; nobody guesses it.
        gate.pass(&PeerId::named(["a".to_owned()]), LaneName(1), Entrance::Tcp).unwrap();
        let view = RegionsView::new(regions);
        let service = Service::new(view, Arc::default(), Arc::default(), 1);
        let mut service = service.behind(gate);
        let mut stream = ServerStream::new(service.newcomer());
        let mut input = Vec::new();
        for (verb, is_v2, len, at) in frames {
            input.extend(frame(verb, is_v2, len, memory.addr() + at));
        }
        input.extend(noise);
        let answer = feed(&mut stream, &mut service, &input);
        prop_assert!(answer.is_empty() || answer == Status::Refused.encode(), "{answer:?}");
        let mut bytes = vec![1; LEN];
        Slice::new(memory.memory().clone(), 0, LEN).unwrap().read(0, &mut bytes).unwrap();
        prop_assert!(bytes.iter().all(|byte| *byte == 0));
    }
}

fn frame(verb: u8, is_v2: bool, len: u64, addr: u64) -> Vec<u8> {
    let verb = match verb {
        0 => Verb::Transfer(Operation::Read),
        1 => Verb::Transfer(Operation::Write),
        2 => Verb::Granted(Operation::Read),
        3 => Verb::Granted(Operation::Write),
        4 => Verb::Event,
        5 => Verb::Name,
        _ => Verb::Pass,
    };
    let (len, addr) = match verb {
        Verb::Pass => (16 + PASS_BYTES as u64, 1),
        Verb::Name => (len.max(16), 1),
        _ => (len, addr),
    };
    let version = if is_v2 { Version::V2 } else { Version::V1 };
    let mut bytes: Vec<u8> = Header { len, addr, verb, version }.encode().into();
    bytes.resize(bytes.len() + len as usize, b'a');
    bytes
}

/// Feeds it as much as it takes; what it answers.
fn feed(stream: &mut ServerStream, service: &mut Service, mut input: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    loop {
        let mut vector = Vector::default();
        stream.receive_into(&mut vector);
        let count = vector.store(input);
        input = &input[count..];
        stream.received(&vector, count, service);
        let mut vector = Vector::default();
        stream.send_into(&mut vector);
        answer.extend(vector.copy_out(usize::MAX));
        stream.sent(service);
        assert!(answer.len() <= STATUS_BYTES, "one refusal ends it");
        if count == 0 || input.is_empty() {
            return answer;
        }
    }
}
