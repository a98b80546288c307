//! Two guests on one wire. Each is booted, and booted again, for itself; what they do meanwhile is
//! heard line by line, and either may be cut off, paused or killed.

use std::io;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::guest::{Boot, Ended};
use super::qmp::{Order, order};
use super::{End, Job, Machine, Wire};
use crate::process;

/// Between two tries to end a guest, which may be booting again.
const PAUSE: Duration = Duration::from_millis(100);

/// Two machines of one kind, and the folder where their wire is.
pub struct Pair {
    boot: Boot,
    machine: Machine,
    folder: TempDir,
}

impl Pair {
    /// What guests of this machine's kind are booted from; its wire is ours to say.
    pub fn new(boot: Boot, machine: Machine) -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("kvrail-pair-").tempdir();
        let folder = folder.map_err(|error| format!("a folder for the wire: {error}"))?;
        Ok(Self { boot, machine, folder })
    }

    /// Runs the job in both, and shows what they say. Answers a's exit code, or b's if that is 0.
    pub fn run(&self, job: &Job) -> Result<u8, String> {
        let run = |end| move || self.boot.run(&self.machine(end), job);
        let [a, b] = thread::scope(|scope| {
            [End::A, End::B].map(|end| scope.spawn(run(end))).map(|guest| guest.join().unwrap())
        });
        let (a, b) = (a?.code, b?.code);
        Ok(if a == 0 { b } else { a })
    }

    /// Runs a job in each, a's first, and ends both when `watch`, which hears their lines, is done.
    pub fn watch<T>(
        &self,
        jobs: &[Job; 2],
        watch: impl FnOnce([Receiver<String>; 2]) -> Result<T, String>,
    ) -> Result<T, String> {
        let pipes = [(); 2].map(|()| io::pipe());
        let [a, b] = pipes.map(|pipe| pipe.map_err(|error| format!("a pipe: {error}")));
        let ((hear_a, tell_a), (hear_b, tell_b)) = (a?, b?);
        thread::scope(|scope| {
            let guests = [(End::A, &jobs[0], tell_a), (End::B, &jobs[1], tell_b)];
            let guests = guests
                .map(|(end, job, tell)| (end, scope.spawn(move || self.run_into(end, job, &tell))));
            let watched = watch([process::lines(hear_a), process::lines(hear_b)]);
            for (end, guest) in guests {
                while !guest.is_finished() {
                    // It may not listen yet, or no more.
                    let _ = self.order(end, Order::Kill);
                    thread::sleep(PAUSE);
                }
                let ended = guest.join().unwrap();
                // Why the guest could not be had explains more than that nothing was heard of it.
                if watched.is_err() {
                    ended.map_err(|error| format!("guest {}: {error}", end.letter()))?;
                }
            }
            watched
        })
    }

    /// Does something to one of them.
    pub fn order(&self, end: End, wanted: Order) -> Result<(), String> {
        order(&self.wire(end).monitor(), wanted)
    }

    fn run_into(&self, end: End, job: &Job, tell: &io::PipeWriter) -> Result<Ended, String> {
        let tell = || tell.try_clone().expect("a descriptor for a guest's lines");
        self.boot.run_into(&self.machine(end), job, tell)
    }

    fn machine(&self, end: End) -> Machine {
        Machine { wire: Some(self.wire(end)), ..self.machine.clone() }
    }

    fn wire(&self, end: End) -> Wire {
        Wire { end, folder: self.folder.path().to_owned() }
    }
}
