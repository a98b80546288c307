//! Contenders as processes: started once, asked line by line, held still while another is
//! measured (some poll whether or not anything is asked of them, and would take its CPU).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::time::ClockId;
use serde_json::Value;

use super::contender::Contender;
use super::figures::Figure;
use super::latency::Latency;
use super::plan::{Cell, Pace};
use crate::process::{Process, json};

/// Starting takes a second, an answer a little more than the time it was asked to take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a contender is watched doing nothing.
const IDLE: Duration = Duration::from_millis(500);
/// Clock ticks a second in /proc/stat, the same on every Linux that kvrail runs on.
const TICKS_PER_S: f64 = 100.0;

/// A contender that runs: the side that is asked, and the side that serves unless it is the same.
pub struct Running {
    initiator: Process,
    target: Option<Process>,
    /// Why it can't be asked any more.
    broken: Option<String>,
    /// What it said that it does while it waits.
    pub idle: Option<String>,
}

impl Running {
    /// Starts it; its logs' names begin with `logs`, and `command` gives the command of the
    /// target, and of the initiator of a segment.
    pub fn start(
        contender: &Contender,
        logs: &Path,
        command: impl Fn(Option<&str>, bool) -> Command,
    ) -> Result<Self, String> {
        let name = contender.name.replace(' ', "-");
        let log = |side: &str| PathBuf::from(format!("{}-{name}-{side}.log", logs.display()));
        let mut segment = None;
        let mut target = None;
        if contender.processes == 2 {
            let mut process = Process::start(command(None, true), &log("target"))?;
            let named = |line: &str| Some(line.strip_prefix("segment ")?.trim().to_owned());
            segment = Some(process.wait_for(PATIENCE, named)?);
            target = Some(process);
        }
        let mut initiator = Process::start(command(segment.as_deref(), false), &log("initiator"))?;
        initiator.wait_for(PATIENCE, |line| json(line)?.get("ready").cloned())?;
        let running = Self { initiator, target, broken: None, idle: None };
        running.processes().for_each(stand_apart);
        running.signal(Signal::SIGSTOP)?;
        Ok(running)
    }

    /// One figure for one cell: everybody else stands still.
    pub fn measure(&mut self, cell: Cell, pace: Pace) -> Result<Figure, String> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        self.signal(Signal::SIGCONT)?;
        let measure_s = cell.measure_s(pace);
        let warm = self.ask(&cell.first_line(pace), measure_s);
        let figure = warm.and_then(|_| self.ask(&cell.line(measure_s), measure_s));
        let held = self.signal(Signal::SIGSTOP);
        figure.and_then(|figure| held.map(|()| figure))
    }

    /// Cores kept busy while nothing is asked.
    pub fn idle_cores(&mut self) -> Result<f64, String> {
        self.signal(Signal::SIGCONT)?;
        let usage = Usage::now(self);
        std::thread::sleep(IDLE);
        let used = Usage::now(self).since(&usage);
        self.signal(Signal::SIGSTOP)?;
        Ok(used.cpu_s / used.wall_s)
    }

    fn ask(&mut self, line: &str, seconds: f64) -> Result<Figure, String> {
        let patience = PATIENCE + Duration::from_secs_f64(seconds);
        let before = Usage::now(self);
        let sent = self.initiator.tell(line);
        let answer = sent.and_then(|()| self.initiator.wait_for(patience, json));
        let answer = answer.inspect_err(|error| self.broken = Some(error.clone()))?;
        let used = Usage::now(self).since(&before);
        if let Some(error) = answer.get("error") {
            return Err(error.as_str().unwrap_or("an error without words").to_owned());
        }
        self.idle = answer["idle"].as_str().map(str::to_owned).or(self.idle.take());
        figure(&answer, &used).ok_or_else(|| format!("{answer} is no figure"))
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        std::iter::once(&self.initiator).chain(&self.target)
    }

    fn signal(&self, signal: Signal) -> Result<(), String> {
        self.processes().try_for_each(|process| {
            kill(process.pid(), signal).map_err(|error| format!("{signal}: {error}"))
        })
    }
}

/// What an answer says; the CPU time is what its processes used unless it knows better.
fn figure(answer: &Value, used: &Usage) -> Option<Figure> {
    let gigabytes_per_second = answer["gigabytes_per_second"].as_f64()?;
    let gigabytes = gigabytes_per_second * answer["seconds"].as_f64()?;
    let cpu_s = answer["cpu_seconds"].as_f64().unwrap_or(used.cpu_s);
    Some(Figure {
        gigabytes_per_second,
        latency: Latency::read(&answer["batch_latency_us"]),
        cpu_seconds_per_gigabyte: Some(cpu_s / gigabytes),
        foreign_cores: Some(((used.busy_s - cpu_s) / used.wall_s).max(0.0)),
    })
}

/// What the machine's CPUs have done so far.
struct Usage {
    wall_s: f64,
    /// Of a contender's processes, all threads.
    cpu_s: f64,
    /// Of everything that runs here.
    busy_s: f64,
}

impl Usage {
    fn now(running: &Running) -> Self {
        let cpu_s = running.processes().map(Process::cpu_s).sum();
        let wall = ClockId::CLOCK_MONOTONIC.now().map_or(Duration::ZERO, Duration::from);
        Self { wall_s: wall.as_secs_f64(), cpu_s, busy_s: busy_s() }
    }

    fn since(&self, before: &Self) -> Self {
        let [wall_s, cpu_s, busy_s] =
            [self.wall_s - before.wall_s, self.cpu_s - before.cpu_s, self.busy_s - before.busy_s];
        Self { wall_s, cpu_s, busy_s }
    }
}

/// Seconds that all CPUs were busy since the machine started: the first line of `proc_stat(5)`.
fn busy_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user already.
    let ticks = ticks.take(8).filter_map(|word| word.parse::<f64>().ok()).enumerate();
    ticks.filter(|(at, _)| ![3, 4].contains(at)).map(|(_, ticks)| ticks).sum::<f64>() / TICKS_PER_S
}

/// The weight of a service of its own against other work, where that may be set: callers that
/// busy-wait would starve their own targets, and background work would take from both.
fn stand_apart(process: &Process) {
    // Not permitted, or no autogroups here: then the scheduler does as it does.
    let _ = std::fs::write(format!("/proc/{}/autogroup", process.pid()), "-19");
}

#[cfg(test)]
mod tests {
    use super::super::contender::WORKLOADS;
    use super::super::latency::tests::latency;
    use super::*;
    use serde_json::json;

    const USED: Usage = Usage { wall_s: 2.0, cpu_s: 1.0, busy_s: 2.0 };

    #[test]
    fn an_answer_becomes_a_figure() {
        let latency = latency(1.5);
        let answer = json!({
            "gigabytes_per_second": 4.0,
            "seconds": 0.5,
            "batch_latency_us": latency.json(),
        });
        let found = figure(&answer, &USED).unwrap();
        assert_eq!(found.latency, Some(latency));
        assert_eq!((found.cpu_seconds_per_gigabyte, found.foreign_cores), (Some(0.5), Some(0.5)));
        let told = json!({"gigabytes_per_second": 4.0, "seconds": 0.5, "cpu_seconds": 4.0});
        let found = figure(&told, &USED).unwrap();
        assert_eq!((found.latency, found.cpu_seconds_per_gigabyte), (None, Some(2.0)));
        assert_eq!(found.foreign_cores, Some(0.0));
        assert_eq!(figure(&json!({"seconds": 1}), &USED), None);
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn logs(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("xtask-{}-{name}", std::process::id()))
    }

    const CELL: Cell =
        Cell { operation: "read", block_bytes: 4096, batch: 1, walk: 1, trace: None };
    const PACE: Pace = Pace { warm_up_s: 0.01, measure_s: 0.02, trace_s: 0.02, retries: 0 };

    /// A contender whose target serves nothing and whose initiator is this script.
    fn running(name: &'static str, script: &str) -> Running {
        let contender = Contender { name, ..WORKLOADS[0].contenders[0] };
        let start = |segment: Option<&str>, is_target| match is_target {
            true => shell("echo segment s; read end"),
            false => {
                shell(&format!("segment={}; echo '{{\"ready\": 1}}'; {script}", segment.unwrap()))
            }
        };
        let logs = logs("running");
        let running = Running::start(&contender, &logs, start).unwrap();
        for side in ["target", "initiator"] {
            std::fs::remove_file(format!("{}-{name}-{side}.log", logs.display())).unwrap();
        }
        running
    }

    /// `T` for stopped, from `proc_pid_stat(5)`.
    fn is_stopped(process: &Process) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
        stat.rsplit(')').next().unwrap().trim().starts_with('T')
    }

    #[test]
    fn a_contender_answers_and_stands_still_in_between() {
        let answer = r#"{"gigabytes_per_second": 2, "seconds": 0.5, "idle": "'$segment'"}"#;
        let script = format!("while read line; do echo '{answer}'; done");
        let mut running = running("answering", &script);
        for _ in 0..2 {
            assert_eq!(running.measure(CELL, PACE).unwrap().gigabytes_per_second, 2.0);
            // A signal is on its way for a moment.
            while !running.processes().all(is_stopped) {
                std::thread::yield_now();
            }
        }
        assert_eq!(running.idle.as_deref(), Some("s"));
        assert!(running.idle_cores().unwrap() < 1.0);
    }

    #[test]
    fn what_goes_wrong_is_told_and_the_dead_are_asked_no_more() {
        let script = r#"read a; echo '{"error": "too large"}'; read b; echo gone >&2"#;
        let mut running = running("failing", script);
        assert_eq!(running.measure(CELL, PACE).unwrap_err(), "too large");
        let dead = running.measure(CELL, PACE).unwrap_err();
        assert!(dead.starts_with("it ended with"), "{dead}");
        assert_eq!(running.measure(CELL, PACE).unwrap_err(), dead);
    }
}
