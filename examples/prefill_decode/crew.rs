//! The two roles at work for the parent: as processes of their own, or as threads of this one.
//! Either way, orders go in by a channel and reports come out by another.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::fetch;
use crate::llama::Failure;
use crate::messages::{Order, Report};
use crate::options::{Options, Path};
use crate::wait::PATIENCE;
use crate::weights::Model;
use crate::{decode, prefill, together};

/// How long a child may go on after its parent has gone, and the parent waits for a child to go.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Prefill,
    Decode,
    /// Both, on one engine.
    Together,
}

impl Role {
    /// The subcommand that starts it.
    fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Together => "together",
        }
    }

    fn play(
        self,
        model: &Model,
        options: &Options,
        orders: &flume::Receiver<Order>,
        report: &dyn Fn(Report) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match self {
            Self::Prefill => prefill::run(model, options, orders, report),
            Self::Decode => decode::run(model, options, orders, report),
            Self::Together => together::run(model, options, orders, report),
        }
    }
}

/// Those who work for the parent. Dropping it ends them.
pub struct Crew {
    members: Vec<Member>,
    reports: flume::Receiver<(Role, Event)>,
}

struct Member {
    role: Role,
    orders: flume::Sender<Order>,
    /// None for a thread.
    process: Option<Process>,
}

enum Event {
    Report(Report),
    Ended,
}

/// A child process, which doesn't outlive this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // An error says that it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Crew {
    /// Starts what `options` ask for, and waits until all are ready.
    pub fn start(model: &Arc<Model>, options: &Options, is_random: bool) -> Result<Self, Failure> {
        if options.path == Path::Local {
            return Self::threads(model, options, &[Role::Together]);
        }
        let (sender, reports) = flume::unbounded();
        let start = |role| start_process(role, is_random && !options.random, sender.clone());
        let members = vec![start(Role::Prefill)?, start(Role::Decode)?];
        Self { members, reports }.introduced()
    }

    /// Threads of this process instead; each role still has an engine of its own.
    pub fn threads(model: &Arc<Model>, options: &Options, roles: &[Role]) -> Result<Self, Failure> {
        let (sender, reports) = flume::unbounded();
        let start = |&role| start_thread(role, model.clone(), options.clone(), sender.clone());
        let members = roles.iter().map(start).collect();
        Self { members, reports }.introduced()
    }

    /// Gives an order to the one that answers.
    pub fn order(&self, order: Order) -> Result<(), Failure> {
        let member = self.members.last().ok_or("nobody is at work")?;
        member.orders.send(order).map_err(|_| self.lost(member.role))
    }

    /// The next report of anybody.
    pub fn report(&mut self) -> Result<Report, Failure> {
        match self.reports.recv_timeout(PATIENCE) {
            Ok((role, Event::Report(Report::Failed(why)))) => {
                Err(format!("{}: {why}", role.name()).into())
            }
            Ok((_, Event::Report(report))) => Ok(report),
            Ok((role, Event::Ended)) => Err(self.ended(role)),
            Err(_) => Err(format!("nothing happened for {} s", PATIENCE.as_secs()).into()),
        }
    }

    /// Lets all go home, and waits for it.
    pub fn dismiss(mut self) -> Result<(), Failure> {
        let mut processes = Vec::new();
        for member in self.members.drain(..) {
            processes.extend(member.process.map(|process| (member.role, process)));
        }
        while let Ok((role, event)) = self.reports.recv_timeout(GRACE) {
            if let Event::Report(Report::Failed(why)) = event {
                return Err(format!("{}: {why}", role.name()).into());
            }
        }
        if !self.reports.is_disconnected() {
            return Err(format!("a role still works after {} s", GRACE.as_secs()).into());
        }
        for (role, mut process) in processes {
            let status = process.0.wait()?;
            if !status.success() {
                return Err(format!("the {} process ended with {status}", role.name()).into());
            }
        }
        Ok(())
    }

    /// Tells the decode role whom to open.
    fn introduced(mut self) -> Result<Self, Failure> {
        for remaining in (0..self.members.len()).rev() {
            let Report::Ready(name) = self.report()? else {
                return Err("a report came before the role was ready".into());
            };
            if remaining > 0 {
                self.order(Order::Open(name))?;
            }
        }
        Ok(self)
    }

    fn lost(&self, role: Role) -> Failure {
        format!("the {} role takes no orders any more", role.name()).into()
    }

    fn ended(&mut self, role: Role) -> Failure {
        let member = self.members.iter_mut().find(|member| member.role == role);
        let status = member.and_then(|member| member.process.as_mut()?.0.wait().ok());
        let how = status.map_or("too early".to_owned(), |status| format!("with {status}"));
        format!("the {} role ended {how}", role.name()).into()
    }
}

fn start_thread(
    role: Role,
    model: Arc<Model>,
    options: Options,
    reports: flume::Sender<(Role, Event)>,
) -> Member {
    let (sender, orders) = flume::unbounded();
    std::thread::spawn(move || {
        let report = |report| Ok(reports.send((role, Event::Report(report)))?);
        if let Err(failure) = role.play(&model, &options, &orders, &report) {
            // Where the parent is gone too, nobody wants to know.
            let _ = report(Report::Failed(failure.to_string()));
        }
        let _ = reports.send((role, Event::Ended));
    });
    Member { role, orders: sender, process: None }
}

/// Starts this program again, with the same options and a role.
fn start_process(
    role: Role,
    is_random: bool,
    reports: flume::Sender<(Role, Event)>,
) -> Result<Member, Failure> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .args(is_random.then_some("--random"))
        .arg(role.name())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (mut stdin, stdout) = stdin.zip(stdout).ok_or("a child without pipes")?;
    let (sender, orders) = flume::unbounded();
    std::thread::spawn(move || -> Result<(), Failure> {
        // Ends with the crew; the child sees its standard input end then.
        orders
            .iter()
            .try_for_each(|order| Ok(writeln!(stdin, "{}", serde_json::to_string(&order)?)?))
    });
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let report = line.map_err(Failure::from).and_then(|line| {
                serde_json::from_str(&line).map_err(|error| format!("{line:?}: {error}").into())
            });
            let report = report.unwrap_or_else(|why: Failure| Report::Failed(why.to_string()));
            if reports.send((role, Event::Report(report))).is_err() {
                return;
            }
        }
        let _ = reports.send((role, Event::Ended));
    });
    Ok(Member { role, orders: sender, process: Some(Process(child)) })
}

/// The whole life of a child process: orders are lines of standard input, reports lines of
/// standard output. It ends when its standard input does, as it will when its parent is gone.
pub fn child(role: Role, options: &Options) -> Result<(), Failure> {
    let (sender, orders) = flume::unbounded();
    std::thread::spawn(move || {
        let orders = std::io::stdin().lines().map_while(Result::ok);
        let orders = orders.map_while(|line| serde_json::from_str(&line).ok());
        // An order that can't be read, or that nobody takes, is the last.
        let _ = orders.map(|order| sender.send(order)).find(Result::is_err);
        drop(sender);
        std::thread::sleep(GRACE);
        eprintln!("{}: the parent is gone", role.name());
        std::process::exit(1);
    });
    let report = |report| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        Ok(out.flush()?)
    };
    let model = if options.random { fetch::random() } else { fetch::model()? };
    role.play(&model, options, &orders, &report)
        .or_else(|failure| report(Report::Failed(failure.to_string())))
}
