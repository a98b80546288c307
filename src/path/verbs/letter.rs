//! What the two sides of an endpoint tell each other, as letters between processes carry it: the
//! machines' messages, and beside them what only the shells need, a NIC's address.

use kvrail_reactors::verbs::{Gid, QpAddress, QpNumber, RemoteAccess, RemoteKey};
use serde::{Deserialize, Serialize};

use crate::limits::{RDMA_EVENTS_MAX, RDMA_QUEUES_MAX};
use crate::path::rdma::{
    EndpointName, Incarnation, InitiatorId, Mailbox, Message, Refusal, Strike,
};

/// How a NIC is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Port {
    pub(crate) gid: [u8; 16],
    /// Its address in an InfiniBand subnet; 0 on Ethernet.
    pub(crate) lid: u16,
    /// As the enumeration of <infiniband/verbs.h>.
    pub(crate) mtu: u8,
}

impl Port {
    pub(crate) fn gid(&self) -> Gid {
        Gid(self.gid)
    }
}

/// A letter's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Body {
    initiator: u64,
    rail: u8,
    generation: u64,
    /// The NIC at the writer's end of the endpoint, where the reader is to connect to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<Port>,
    /// The reader's NIC that is meant, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<String>,
    word: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Open {
        queues: Vec<(u32, u32)>,
    },
    Opened {
        queues: Vec<(u32, u32)>,
        mailbox: Option<(u64, u32, u32)>,
    },
    Refused {
        why: Why,
    },
    Fence,
    Fenced {
        arrived: Vec<(u64, u64)>,
    },
    Broken {
        is_rail_well: bool,
    },
    Bind {
        grant: (u32, u64),
    },
    /// May it read, may it write; of those that don't say, the NIC knows.
    Bound {
        grant: (u32, u64),
        keys: Vec<u32>,
        #[serde(default = "either")]
        may: (bool, bool),
    },
    Struck {
        grant: (u32, u64),
        why: Why,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Why {
    Stale,
    Full,
    Device,
    Shape,
    Gone,
    Refused,
}

impl Body {
    /// What a machine says.
    pub(crate) fn new(message: &Message, port: Option<Port>, device: Option<String>) -> Self {
        let name = message.name();
        let EndpointName { initiator, rail, generation } = name;
        Self { initiator: initiator.0, rail, generation, port, device, word: word(message) }
    }

    pub(crate) fn name(&self) -> EndpointName {
        let (initiator, rail, generation) =
            (InitiatorId(self.initiator), self.rail, self.generation);
        EndpointName { initiator, rail, generation }
    }

    /// Whether it is for the side that opened the endpoint.
    pub(crate) fn is_for_initiator(&self) -> bool {
        !matches!(self.word, Word::Open { .. } | Word::Fence | Word::Bind { .. })
    }

    /// As a machine takes it, from a process of this incarnation; `nic` is the index of the NIC
    /// that is meant. None where it is longer than any that we write.
    pub(crate) fn message(self, from: u64, nic: u8) -> Option<Message> {
        let (name, target) = (self.name(), Incarnation(from));
        let fits = match &self.word {
            Word::Open { queues } | Word::Opened { queues, .. } => queues.len() <= RDMA_QUEUES_MAX,
            Word::Bound { keys, .. } => keys.len() <= RDMA_QUEUES_MAX,
            Word::Fenced { arrived } => arrived.len() <= RDMA_EVENTS_MAX,
            _ => true,
        };
        let message = match self.word {
            Word::Open { queues } => Message::Open { name, theirs: nic, queues: read(queues) },
            Word::Opened { queues, mailbox } => {
                let mailbox =
                    mailbox.map(|(addr, key, slots)| Mailbox { addr, key: RemoteKey(key), slots });
                Message::Opened { name, target, queues: read(queues), mailbox }
            }
            Word::Refused { why } => Message::Refused { name, why: refusal(why) },
            Word::Fence => Message::Fence { name },
            Word::Fenced { arrived } => Message::Fenced { name, target, arrived },
            Word::Broken { is_rail_well } => Message::Broken { name, is_rail_well },
            Word::Bind { grant } => Message::Bind { name, grant: raw(grant) },
            Word::Bound { grant, keys, may: (read, write) } => {
                let keys = keys.into_iter().map(RemoteKey).collect();
                let access = RemoteAccess { read, write };
                Message::Bound { name, grant: raw(grant), keys, access }
            }
            Word::Struck { grant, why } => {
                Message::Struck { name, grant: raw(grant), why: strike(why) }
            }
        };
        fits.then_some(message)
    }
}

fn either() -> (bool, bool) {
    (true, true)
}

fn word(message: &Message) -> Word {
    match message {
        Message::Open { queues, .. } => Word::Open { queues: written(queues) },
        Message::Opened { queues, mailbox, .. } => Word::Opened {
            queues: written(queues),
            mailbox: mailbox.map(|mailbox| (mailbox.addr, mailbox.key.0, mailbox.slots)),
        },
        Message::Refused { why, .. } => Word::Refused {
            why: match why {
                Refusal::Stale => Why::Stale,
                Refusal::Full => Why::Full,
                Refusal::Device => Why::Device,
                Refusal::Shape => Why::Shape,
            },
        },
        Message::Fence { .. } => Word::Fence,
        Message::Fenced { arrived, .. } => Word::Fenced { arrived: arrived.clone() },
        Message::Broken { is_rail_well, .. } => Word::Broken { is_rail_well: *is_rail_well },
        Message::Bind { grant, .. } => Word::Bind { grant: halves(*grant) },
        Message::Bound { grant, keys, access, .. } => Word::Bound {
            grant: halves(*grant),
            keys: keys.iter().map(|key| key.0).collect(),
            may: (access.read, access.write),
        },
        Message::Struck { grant, why, .. } => Word::Struck {
            grant: halves(*grant),
            why: match why {
                Strike::Gone => Why::Gone,
                Strike::Full => Why::Full,
                Strike::Refused => Why::Refused,
            },
        },
    }
}

fn refusal(why: Why) -> Refusal {
    match why {
        Why::Full => Refusal::Full,
        Why::Device => Refusal::Device,
        Why::Shape => Refusal::Shape,
        Why::Stale | Why::Gone | Why::Refused => Refusal::Stale,
    }
}

fn strike(why: Why) -> Strike {
    match why {
        Why::Full => Strike::Full,
        Why::Refused => Strike::Refused,
        _ => Strike::Gone,
    }
}

fn written(queues: &[QpAddress]) -> Vec<(u32, u32)> {
    queues.iter().map(|queue| (queue.number.0, queue.first_packet)).collect()
}

fn read(queues: Vec<(u32, u32)>) -> Vec<QpAddress> {
    let address = |(number, first_packet)| QpAddress { number: QpNumber(number), first_packet };
    queues.into_iter().map(address).collect()
}

/// A grant's number as JSON's can hold it.
fn halves(grant: u128) -> (u32, u64) {
    ((grant >> 64) as u32, grant as u64)
}

fn raw((slot, word): (u32, u64)) -> u128 {
    u128::from(slot) << 64 | u128::from(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: EndpointName =
        EndpointName { initiator: InitiatorId(u64::MAX), rail: 3, generation: 7 };

    fn messages() -> Vec<Message> {
        let name = NAME;
        let queues = vec![QpAddress { number: QpNumber(17), first_packet: 0xff_ffff }];
        let mailbox = Some(Mailbox { addr: u64::MAX, key: RemoteKey(u32::MAX), slots: 256 });
        let (target, grant) = (Incarnation(5), u128::from(u64::MAX) + 12);
        vec![
            Message::Open { name, theirs: 1, queues: queues.clone() },
            Message::Opened { name, target, queues: queues.clone(), mailbox },
            Message::Opened { name, target, queues, mailbox: None },
            Message::Refused { name, why: Refusal::Full },
            Message::Fence { name },
            Message::Fenced { name, target, arrived: vec![(1, u64::MAX)] },
            Message::Broken { name, is_rail_well: true },
            Message::Bind { name, grant },
            Message::Bound {
                name,
                grant,
                keys: vec![RemoteKey(1), RemoteKey(2)],
                access: RemoteAccess { read: true, write: false },
            },
            Message::Struck { name, grant, why: Strike::Refused },
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        let port = Some(Port { gid: [7; 16], lid: 0, mtu: 5 });
        for message in messages() {
            let body = Body::new(&message, port, Some("rxe0".into()));
            let text = serde_json::to_string(&body).unwrap();
            let read: Body = serde_json::from_str(&text).unwrap();
            assert_eq!((read.port, read.name()), (port, NAME));
            let is_question = matches!(
                message,
                Message::Open { .. } | Message::Fence { .. } | Message::Bind { .. }
            );
            assert_eq!(read.is_for_initiator(), !is_question);
            assert_eq!(read.message(5, 1), Some(message));
        }
    }

    #[test]
    fn longer_ones_than_any_of_ours_are_not_read() {
        let queues = vec![QpAddress { number: QpNumber(1), first_packet: 0 }; RDMA_QUEUES_MAX + 1];
        let body = Body::new(&Message::Open { name: NAME, theirs: 0, queues }, None, None);
        assert_eq!(body.message(1, 0), None);
    }
}
