//! Both sides against each other, through text, with every message on its way as long as it likes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

/// One engine with a single device: its target, and an opening to the other.
struct Side {
    nic: Nic,
    target: Target,
    opening: Option<Opening>,
    made: u32,
    /// Its queue pairs, and what each is connected to.
    alive: BTreeMap<QpNumber, Option<QpNumber>>,
    is_ready: bool,
}

/// What is under way: from this side, and whether it is an answer to the other's opening or a
/// request of its own.
enum Mail {
    Request { from: usize, text: Vec<u8> },
    Answer { to: usize, text: Vec<u8> },
}

struct Two {
    sides: [Side; 2],
    mail: VecDeque<Mail>,
    asks: u64,
}

impl Side {
    fn new(server: &str) -> Self {
        let nic = Nic::new(0, server, "d", PORT).unwrap();
        let mut target = Target::new(4);
        target.add_nic(nic.clone());
        Self { nic, target, opening: None, made: 0, alive: BTreeMap::new(), is_ready: false }
    }

    fn make(&mut self, remotes: impl IntoIterator<Item = Option<QpNumber>>) -> Vec<QpNumber> {
        let pairs = remotes.into_iter().map(|remote| {
            self.made += 1;
            (QpNumber(self.made), remote)
        });
        let pairs: Vec<_> = pairs.collect();
        self.alive.extend(pairs.iter().copied());
        pairs.into_iter().map(|(own, _)| own).collect()
    }

    fn destroy(&mut self, queues: Vec<QpNumber>) {
        for queue in queues {
            assert!(self.alive.remove(&queue).is_some(), "{queue:?} ended twice");
        }
    }
}

impl Two {
    fn new() -> Self {
        Self { sides: [Side::new("a"), Side::new("b")], mail: VecDeque::new(), asks: 0 }
    }

    fn open(&mut self, side: usize) {
        let peer = self.sides[1 - side].nic.path.clone();
        let here = &mut self.sides[side];
        let nic = here.nic.clone();
        here.opening = Some(match here.target.hand_over(0, &peer) {
            Held::Nothing => Opening::new(nic, peer, 2, 0).unwrap(),
            Held::Here(accepted) => Opening::adopt(nic, peer, accepted, 0),
            Held::Soon => panic!("queue pairs are made at once"),
        });
        self.act(side);
    }

    /// Carries out what this side asks for; queue pairs are made and connected at once.
    fn act(&mut self, side: usize) {
        loop {
            let actions = self.sides[side].target.take_actions();
            let opening = self.sides[side].opening.as_mut();
            let steps = opening.map(Opening::take_steps).unwrap_or_default();
            if actions.is_empty() && steps.is_empty() {
                return;
            }
            actions.into_iter().for_each(|action| self.carry_out(side, action));
            steps.into_iter().for_each(|step| self.take(side, step));
        }
    }

    fn carry_out(&mut self, side: usize, action: Action) {
        let here = &mut self.sides[side];
        match action {
            Action::Accept { id, queues, .. } => {
                let made = here.make(queues.into_iter().map(Some));
                here.target.accepted(id, Some(made), 0);
            }
            Action::Destroy { queues, .. } => here.destroy(queues),
            Action::Reply { reply, .. } => self.answer(1 - side, &reply),
            Action::Locate { .. } => panic!("every message has a port"),
        }
    }

    fn take(&mut self, side: usize, step: Step) {
        let here = &mut self.sides[side];
        let Some(opening) = &mut here.opening else { return };
        match step {
            Step::Create { queues } => {
                let made = here.make(vec![None; queues]);
                here.opening.as_mut().unwrap().created(Some(made));
            }
            Step::Connect { pairs, .. } => {
                here.alive.extend(pairs.into_iter().map(|(own, theirs)| (own, Some(theirs))));
                opening.connected(true);
            }
            Step::Ask(request) => {
                let text = serde_json::to_vec(&request).unwrap();
                self.mail.push_back(Mail::Request { from: side, text });
            }
            Step::Reply { reply, .. } => self.answer(1 - side, &reply),
            Step::Ready => {
                here.is_ready = true;
                let peer = self.sides[1 - side].nic.path.clone();
                self.sides[side].target.forget(0, &peer);
            }
            Step::Destroy { queues } => here.destroy(queues),
            Step::Over(_) => here.is_ready = false,
            Step::Locate => panic!("every message has a port"),
        }
    }

    fn answer(&mut self, to: usize, reply: &Handshake) {
        let text = serde_json::to_vec(reply).unwrap();
        self.mail.push_back(Mail::Answer { to, text });
    }

    /// One of the messages under way arrives.
    fn deliver(&mut self, which: usize) {
        let Some(mail) = self.mail.remove(which % self.mail.len().max(1)) else { return };
        match mail {
            Mail::Request { from, text } => {
                let request: Handshake = serde_json::from_slice(&text).unwrap();
                let side = 1 - from;
                self.asks += 1;
                let ask = Ask(self.asks);
                let opening = self.sides[side].opening.as_mut();
                if !opening.is_some_and(|opening| opening.asked(ask, &request)) {
                    self.sides[side].target.asked(ask, &request, 0);
                }
                self.act(side);
            }
            Mail::Answer { to, text } => {
                let answer = serde_json::from_slice(&text).unwrap();
                if let Some(opening) = &mut self.sides[to].opening {
                    opening.answered(Ok(answer));
                }
                self.act(to);
            }
        }
    }

    /// Queue pairs of a side that is ready, and whether each one's peer is connected back to it.
    fn is_joined(&self, side: usize) -> bool {
        let (here, there) = (&self.sides[side], &self.sides[1 - side]);
        let back = |own: &QpNumber, remote: &Option<QpNumber>| {
            remote.and_then(|remote| there.alive.get(&remote).copied().flatten()) == Some(*own)
        };
        here.alive.iter().all(|(own, remote)| back(own, remote))
    }
}

#[test]
fn an_opening_and_a_target_join() {
    let mut two = Two::new();
    two.open(0);
    while !two.mail.is_empty() {
        two.deliver(0);
    }
    assert!(two.sides[0].is_ready && two.is_joined(0) && two.is_joined(1));
    assert_eq!(two.sides.each_ref().map(|side| side.alive.len()), [2, 2]);
}

#[test]
fn an_opening_anew_takes_the_place_of_the_first() {
    let mut two = Two::new();
    for _ in 0..3 {
        if let Some(opening) = &mut two.sides[0].opening {
            opening.close();
            two.act(0);
        }
        two.open(0);
        while !two.mail.is_empty() {
            two.deliver(0);
        }
        assert!(two.sides[0].is_ready && two.is_joined(0) && two.is_joined(1));
        assert_eq!(two.sides.each_ref().map(|side| side.alive.len()), [2, 2]);
    }
}

#[test]
fn the_other_way_the_same_endpoint_is_used() {
    let mut two = Two::new();
    two.open(0);
    while !two.mail.is_empty() {
        two.deliver(0);
    }
    let before = two.sides[1].alive.clone();
    two.open(1);
    assert!(two.mail.is_empty() && two.sides[0].is_ready && two.sides[1].is_ready);
    assert_eq!(two.sides[1].alive, before);
    assert!(two.is_joined(0) && two.is_joined(1));
}

proptest! {
    #[test]
    fn both_open_at_once_in_any_order(
        order in prop::collection::vec(0_usize..4, 0..12),
        late in 0_usize..12,
    ) {
        let mut two = Two::new();
        two.open(0);
        for (turn, which) in order.into_iter().enumerate() {
            if turn == late && two.sides[1].opening.is_none() {
                two.open(1);
            }
            two.deliver(which);
        }
        if two.sides[1].opening.is_none() {
            two.open(1);
        }
        while !two.mail.is_empty() {
            two.deliver(0);
        }
        prop_assert!(two.sides[0].is_ready && two.sides[1].is_ready);
        for side in [0, 1] {
            prop_assert!(two.is_joined(side), "{:?}", two.sides[side].alive);
            prop_assert_eq!(two.sides[side].alive.len(), 2);
        }
        let numbers: BTreeSet<_> = two.sides[0].alive.keys().collect();
        prop_assert_eq!(numbers.len(), 2);
    }
}
