//! What a process is told beside data: steps of its counter and messages, each of them once, and
//! each that was confirmed.

use std::collections::BTreeMap;

use crate::counter::Counter;
use crate::engine::Engine;

/// The counter that every process has open.
pub(super) const COUNTER: u64 = 1;

/// What a transfer tells its peer when its data is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tells {
    pub(super) counts: bool,
    pub(super) says: bool,
}

/// Whether the peer was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Certainly,
    Never,
    Maybe,
}

/// How often something was asked for, was confirmed, and happened.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    asked: u64,
    certain: u64,
    happened: u64,
}

/// A process's account of both.
pub(super) struct Hearing {
    counter: Counter,
    steps: Account,
    /// By the transfer that says them.
    messages: BTreeMap<usize, Account>,
}

impl Account {
    fn ended(&mut self, told: Told) {
        match told {
            Told::Certainly => self.certain += 1,
            Told::Never => self.asked -= 1,
            Told::Maybe => {}
        }
    }

    fn check(&self, what: &str) -> Result<(), String> {
        let Self { asked, certain, happened } = *self;
        if (certain..=asked).contains(&happened) {
            return Ok(());
        }
        Err(format!("{what} {happened} times; {certain} were confirmed, {asked} asked for"))
    }
}

impl Hearing {
    pub(super) fn new(engine: &Engine) -> Self {
        let counter = engine.counter(COUNTER).expect("the first counter");
        Self { counter, steps: Account::default(), messages: BTreeMap::new() }
    }

    /// A transfer is to tell it something.
    pub(super) fn asked(&mut self, transfer: usize, tells: Tells) {
        self.steps.asked += u64::from(tells.counts);
        if tells.says {
            self.messages.entry(transfer).or_default().asked += 1;
        }
    }

    /// That transfer has ended.
    pub(super) fn ended(&mut self, transfer: usize, tells: Tells, told: Told) {
        if tells.counts {
            self.steps.ended(told);
        }
        if tells.says {
            self.messages.entry(transfer).or_default().ended(told);
        }
    }

    /// Reads its messages.
    pub(super) fn listen(&mut self, engine: &Engine) -> Result<(), String> {
        while let Some(message) = engine.try_notification() {
            let text = String::from_utf8_lossy(&message.bytes);
            let account = text.parse().ok().and_then(|transfer| self.messages.get_mut(&transfer));
            let account = account.ok_or_else(|| format!("a message that nobody sent: {text}"))?;
            account.happened += 1;
        }
        Ok(())
    }

    /// What doesn't add up.
    pub(super) fn check(&mut self) -> Result<(), String> {
        self.steps.happened = self.counter.value();
        self.steps.check("the counter was advanced")?;
        let mut messages = self.messages.iter();
        messages.try_for_each(|(from, account)| {
            account.check(&format!("the message of transfer {from} was heard"))
        })
    }
}
