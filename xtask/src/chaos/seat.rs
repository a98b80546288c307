//! An agent's place in the cluster: its name stays, the process behind it comes and goes.

use std::io::Write;
use std::net::{IpAddr, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;

use super::agent::{Agent, listening};
use super::guest::DEVICES;
use super::lock;
use super::relay::{Fate, Relay};
use super::{Field, Way, Wrongs};

pub struct Seat {
    pub name: String,
    pub id: u8,
    filled: Mutex<Filled>,
}

struct Filled {
    incarnation: u8,
    agent: Arc<Agent>,
    relay: Option<Relay>,
}

impl Seat {
    /// Starts its first agent.
    pub fn new(field: &Field, id: u8, wrongs: &Wrongs) -> Result<Self, String> {
        let name = format!("{}-{id}", field.way.word());
        let filled = fill(field, &name, id, 0, wrongs)?;
        Ok(Self { name, id, filled: Mutex::new(filled) })
    }

    /// The process that has the name now, and which one it is.
    pub fn agent(&self) -> (Arc<Agent>, u8) {
        let filled = lock(&self.filled);
        (filled.agent.clone(), filled.incarnation)
    }

    /// Kills the process; another takes its name.
    pub fn replace(&self, field: &Field, wrongs: &Wrongs) -> Result<(), String> {
        let (agent, incarnation) = self.agent();
        agent.kill();
        field.strike_off(&self.name).map_err(|error| format!("the registry: {error}"))?;
        *lock(&self.filled) = fill(field, &self.name, self.id, incarnation + 1, wrongs)?;
        Ok(())
    }

    /// What shall become of connections to it: of all, or of one. Answers of how many.
    pub fn decide(&self, fate: Fate, which: Option<usize>) -> usize {
        lock(&self.filled).relay.as_ref().map_or(0, |relay| relay.decide(fate, which))
    }

    pub fn signal(&self, signal: Signal) -> bool {
        self.agent().0.signal(signal)
    }

    /// Stops its engine and ends the process, as it should end.
    pub fn end(&self) -> Result<(), String> {
        let (agent, _) = self.agent();
        let stopped = agent.ask(serde_json::json!({ "do": "stop" }));
        stopped.map_err(|silence| format!("{} does not stop: {silence:?}", self.name))?;
        agent.end()
    }
}

fn fill(
    field: &Field,
    name: &str,
    id: u8,
    incarnation: u8,
    wrongs: &Wrongs,
) -> Result<Filled, String> {
    // Each has an address of its own on the loopback, where the relay stands before it.
    let host: IpAddr = [127, 0, 1, id + 1].into();
    let relayed = field.way.is_relayed();
    let advertised = if relayed { host } else { [127, 0, 0, 1].into() };
    let mut command = field.command();
    command.args(["play", "--name", name, "--registry", &field.registry]);
    command.args(["--advertise", &advertised.to_string()]);
    command.args(["--id", &id.to_string(), "--incarnation", &incarnation.to_string()]);
    command.args(field.way.is_network().then_some("--network"));
    if field.way == Way::Rdma {
        command.args(["--device-name", &DEVICES[usize::from(id)].join(",")]);
    }
    // Both drivers take part.
    command.args((id % 2 == 1).then_some("--epoll"));
    let log = field.logs.join(format!("{name}.{incarnation}.log"));
    let wrongs = wrongs.clone();
    let agent = Agent::start(name, command, log, move |what| lock(&wrongs).push(what))?;
    let relay = match relayed {
        true => Some(Relay::start(host, &listening(agent.pid())?)?),
        false => None,
    };
    Ok(Filled { incarnation, agent: Arc::new(agent), relay })
}

impl Field {
    /// Deletes the key that a killed engine has left at the metadata server: the name is refused
    /// to others while it is there.
    fn strike_off(&self, name: &str) -> std::io::Result<()> {
        let url = self.registry.trim_start_matches("http://");
        let (host, path) = url.split_once('/').unwrap_or((url, ""));
        let mut stream = TcpStream::connect(host)?;
        let request = format!("DELETE /{path}?key=mooncake/rpc_meta/{name} HTTP/1.1");
        write!(stream, "{request}\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        std::io::read_to_string(stream).map(drop)
    }

    /// A command whose process ends when nobody writes to its standard input any more. (A death
    /// signal would tie it to the thread that starts it.)
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.logs);
        command
    }
}
