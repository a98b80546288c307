//! What the ends of transfers promise, held against what is there; memory that a receipt calls
//! quiet is used again at once.

use super::hearing::Told;
use super::process::Registration;
use super::transfer::{Asked, Under};
use super::world::{World, note};
use crate::memory::Operation;
use crate::{Error, ErrorKind, Failed, Landed, Outcome, Proof, Result};

/// How a request ended, for the memory it writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// All its bytes are there, and it is quiet.
    Whole,
    /// Quiet, without a byte of it.
    Untouched,
    /// Some of its bytes may be there; no more come.
    Quiet,
    /// Nothing is known of the far side.
    Unproven,
}

impl Ended {
    fn new(status: &Result<()>) -> Self {
        match status {
            Ok(()) => Self::Whole,
            Err(error) if error.landed() == Landed::No => Self::Untouched,
            Err(error) if error.remote() == Proof::Quiet => Self::Quiet,
            Err(_) => Self::Unproven,
        }
    }
}

impl World {
    /// Callers look for their transfers' ends, or give up on them.
    pub(super) fn callers(&mut self) -> Result<(), String> {
        let mut index = 0;
        while index < self.under_way.len() {
            if self.processes[self.under_way[index].from.0].node.is_paused {
                index += 1;
                continue;
            }
            self.give_up(index);
            let under = &mut self.under_way[index];
            if let Some(ended) = under.course.poll() {
                if !self.again(index, &ended) {
                    let under = self.under_way.swap_remove(index);
                    self.ended(under, ended)?;
                }
            } else if under.course.is_abandoned() && !self.is_leased(index) {
                let under = self.under_way.swap_remove(index);
                note!(self, "transfer {} has given its leases back", under.number);
                self.ended += 1;
                let unknown = vec![Ended::Unproven; under.requests.len()];
                self.settle(&under, &unknown)?;
            } else {
                index += 1;
            }
        }
        Ok(())
    }

    fn give_up(&mut self, index: usize) {
        let now_ns = self.now_ns;
        let under = &mut self.under_way[index];
        if let Some((_, how)) = under.gives_up.take_if(|(at_ns, _)| *at_ns <= now_ns) {
            under.course.give_up(how);
            let number = under.number;
            note!(self, "transfer {number} is given up: its caller {how:?}");
        }
    }

    /// Posts a prepared batch again that went well.
    fn again(&mut self, index: usize, ended: &Result<Outcome, Failed>) -> bool {
        let under = &mut self.under_way[index];
        let engine = &self.processes[under.from.0].node.engine;
        if ended.is_err() || under.gives_up.is_some() || !under.course.repeat(engine) {
            return false;
        }
        let (number, (to, incarnation), tells) = (under.number, under.to, under.tells);
        let far = &mut self.processes[to];
        if far.node.incarnation == incarnation {
            far.hearing.ended(number, tells, Told::Certainly);
            far.hearing.asked(number, tells);
        }
        note!(self, "transfer {number} went well and is posted again");
        true
    }

    fn is_leased(&self, index: usize) -> bool {
        self.under_way[index].requests.iter().any(|asked| {
            let space = &self.processes[asked.near.node].spaces[asked.near.space];
            let start = space.range(asked.near.block).start + asked.near_at;
            space.memory.region.is_leased(start..start + asked.bytes.len())
        })
    }

    fn ended(&mut self, mut under: Under, ended: Result<Outcome, Failed>) -> Result<(), String> {
        self.ended += 1;
        let is_confirmed = ended.is_ok() && !under.course.is_cancelled();
        let (error, outcome) = match ended {
            Ok(outcome) => (outcome.statuses().iter().find_map(|s| s.clone().err()), outcome),
            Err(failed) => (Some(failed.error().clone()), failed.into_outcome()),
        };
        let words = error.as_ref().map_or("OK", |error| error.kind().label());
        note!(self, "transfer {} ends: {words}", under.number);
        self.succeeded += usize::from(error.is_none());
        self.may_fail(&under, error.as_ref())?;
        self.may_be_stale(&under, outcome.statuses())?;
        let ends: Vec<Ended> = outcome.statuses().iter().map(Ended::new).collect();
        drop(outcome);
        under.course.finish();
        let told = match &error {
            None if is_confirmed => Told::Certainly,
            // No event goes behind a request that failed.
            _ if ends.iter().any(|end| *end != Ended::Whole) => Told::Never,
            Some(error) if error.landed() == Landed::No => Told::Never,
            _ => Told::Maybe,
        };
        let far = &mut self.processes[under.to.0];
        if far.node.incarnation == under.to.1 {
            far.hearing.ended(under.number, under.tells, told);
        }
        self.settle(&under, &ends)
    }

    /// Nothing fails without a reason.
    fn may_fail(&self, under: &Under, error: Option<&Error>) -> Result<(), String> {
        let is_excused = self.schedule.has_faults()
            || !under.is_patient
            || under.requests.iter().any(|asked| self.is_stale(under, asked));
        match error.filter(|_| !is_excused) {
            Some(error) => {
                Err(format!("transfer {} failed without a fault: {error}", under.number))
            }
            None => Ok(()),
        }
    }

    /// Whoever asks under a grant that is over hears that; nobody else does.
    fn may_be_stale(&self, under: &Under, statuses: &[Result<()>]) -> Result<(), String> {
        for (index, (asked, status)) in under.requests.iter().zip(statuses).enumerate() {
            let name = || format!("request {index} of transfer {}", under.number);
            match status {
                Ok(()) if asked.is_outdated() => {
                    return Err(format!("{} ended OK under a grant that was over", name()));
                }
                Err(error) if error.kind() == ErrorKind::Stale && !self.is_stale(under, asked) => {
                    return Err(format!("{} ended as Stale under a grant that holds", name()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the grant of a request, if it has one, is over.
    fn is_stale(&self, under: &Under, asked: &Asked) -> bool {
        let owner = &self.processes[under.to.0];
        asked.claim.is_some_and(|claim| {
            owner.node.incarnation != under.to.1 || owner.may_be_stale(claim, self.now_ns)
        })
    }

    /// What the ends promise holds, and quiet memory is used again at once.
    fn settle(&mut self, under: &Under, ends: &[Ended]) -> Result<(), String> {
        for (index, (asked, &end)) in under.requests.iter().zip(ends).enumerate() {
            if end == Ended::Whole && !self.is_there(asked) {
                let number = under.number;
                return Err(format!(
                    "request {index} of transfer {number} ended OK without its bytes"
                ));
            }
            let writer = under.writer(index);
            self.processes[asked.near.node].reuse(asked.near, writer);
            self.leave(asked, end, writer);
        }
        Ok(())
    }

    /// Whether the bytes of a request that ended well are where they should be.
    fn is_there(&self, asked: &Asked) -> bool {
        let (target, at) = asked.target();
        let owner = &self.processes[target.node];
        let is_gone = owner.node.incarnation != target.incarnation
            || owner.spaces[target.space].state == Registration::Gone
            // The next tenant's bytes are there.
            || asked.claim.is_some_and(|claim| target == asked.far && !owner.is_let(claim));
        is_gone || owner.has(target, at, &asked.bytes)
    }

    /// A request's far side is free for others, as far as its end proves that.
    pub(super) fn leave(&mut self, asked: &Asked, end: Ended, writer: usize) {
        let owner = &mut self.processes[asked.far.node];
        match (asked.claim, asked.operation) {
            _ if owner.node.incarnation != asked.far.incarnation => {}
            (Some(claim), operation) => owner.leaves(claim, operation, end, writer),
            (None, Operation::Read) => owner.release(asked.far),
            (None, Operation::Write) if end == Ended::Unproven => {}
            (None, Operation::Write) => owner.reuse(asked.far, writer),
        }
    }
}
