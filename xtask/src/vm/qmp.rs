//! Orders to a running QEMU, by its machine protocol (QMP): JSON, a line each, over a socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::wire::NETDEV;

/// QEMU answers at once, unless its host has no CPU for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events that may come before an answer; there is hardly one.
const LINES_MAX: usize = 64;

/// What is done to a guest from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Its end of the wire is pulled: it loses its carrier, and frames are lost in both directions.
    Cut,
    /// And plugged in again.
    Mend,
    /// All of its CPUs stop, and its clocks with them.
    Pause,
    Resume,
    /// It is gone, without a word to anybody.
    Kill,
}

impl Order {
    fn request(self) -> Value {
        let link =
            |up: bool| json!({"execute": "set_link", "arguments": {"name": NETDEV, "up": up}});
        match self {
            Self::Cut => link(false),
            Self::Mend => link(true),
            Self::Pause => json!({"execute": "stop"}),
            Self::Resume => json!({"execute": "cont"}),
            Self::Kill => json!({"execute": "quit"}),
        }
    }
}

/// Has the order carried out by the QEMU that listens at this socket.
pub fn order(monitor: &Path, order: Order) -> Result<(), String> {
    let failed = |error: io::Error| format!("{order:?} at {}: {error}", monitor.display());
    let mut stream = UnixStream::connect(monitor).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut lines = BufReader::new(stream.try_clone().map_err(failed)?).lines();
    // Its greeting tells its version.
    lines.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into())).map_err(failed)?;
    for request in [json!({"execute": "qmp_capabilities"}), order.request()] {
        // In one piece: QEMU acts on the closing brace, and one that quits is gone before the rest.
        stream.write_all(format!("{request}\n").as_bytes()).map_err(failed)?;
        let told = lines.by_ref().take(LINES_MAX);
        match told.map(|line| line.map(|line| answer(&line))).find_map(Result::transpose) {
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(why))) => return Err(format!("{order:?} at {}: {why}", monitor.display())),
            // Who is told to quit may be gone before it answers, or before it has read all.
            Some(Err(error)) if order == Order::Kill && is_end(&error) => {}
            None if order == Order::Kill => {}
            Some(Err(error)) => return Err(failed(error)),
            None => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
        }
    }
    Ok(())
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// What a line says to a request; nothing, where it tells of something else.
fn answer(line: &str) -> Option<Result<(), String>> {
    let value: Value = serde_json::from_str(line).ok()?;
    match (value.get("return"), value.get("error")) {
        (Some(_), _) => Some(Ok(())),
        (_, Some(error)) => Some(Err(error["desc"].as_str().unwrap_or("no word why").to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A QEMU that answers each request with the next of these, and tells what it was asked last.
    fn ask(answers: [&'static str; 2], wanted: Order) -> (Result<(), String>, Value) {
        let folder = tempfile::tempdir().unwrap();
        let monitor = folder.path().join("qmp");
        let listener = UnixListener::bind(&monitor).unwrap();
        let qemu = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            writeln!(stream, r#"{{"QMP": {{}}}}"#).unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut asked = String::new();
            for answer in answers {
                asked = lines.next().unwrap().unwrap();
                writeln!(stream, "{answer}").unwrap();
            }
            serde_json::from_str(&asked).unwrap()
        });
        let ended = order(&monitor, wanted);
        (ended, qemu.join().unwrap())
    }

    #[test]
    fn orders_are_carried_out_or_refused() {
        let (ended, asked) = ask([r#"{"return": {}}"#, r#"{"return": {}}"#], Order::Cut);
        assert_eq!(ended, Ok(()));
        assert_eq!(asked["arguments"], json!({"name": "wire", "up": false}));
        let event = "{\"event\": \"STOP\"}\n{\"return\": {}}";
        let (ended, asked) = ask([r#"{"return": {}}"#, event], Order::Pause);
        assert_eq!((ended, &asked["execute"]), (Ok(()), &json!("stop")));
        let error = r#"{"error": {"class": "x", "desc": "Device 'wire' not found"}}"#;
        let (ended, _) = ask([r#"{"return": {}}"#, error], Order::Mend);
        assert!(ended.unwrap_err().ends_with("Device 'wire' not found"));
    }

    /// QEMU acts as soon as an object is whole, and what it has not read by then is lost with it.
    #[test]
    fn who_quits_at_the_closing_brace_was_killed_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let monitor = folder.path().join("qmp");
        let listener = UnixListener::bind(&monitor).unwrap();
        let qemu = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            writeln!(stream, r#"{{"QMP": {{}}}}"#).unwrap();
            let object = |stream: &mut UnixStream| {
                let (mut text, mut byte) = (Vec::new(), [0]);
                while serde_json::from_slice::<Value>(&text).is_err() {
                    stream.read_exact(&mut byte).unwrap();
                    text.push(byte[0]);
                }
            };
            object(&mut stream);
            writeln!(stream, r#"{{"return": {{}}}}"#).unwrap();
            object(&mut stream);
        });
        assert_eq!(order(&monitor, Order::Kill), Ok(()));
        qemu.join().unwrap();
    }

    #[test]
    fn only_who_is_killed_may_go_without_an_answer() {
        let event = r#"{"event": "SHUTDOWN"}"#;
        assert_eq!(ask([r#"{"return": {}}"#, event], Order::Kill).0, Ok(()));
        let ended = ask([r#"{"return": {}}"#, event], Order::Pause).0.unwrap_err();
        assert!(ended.starts_with("Pause at "), "{ended}");
        assert!(order(Path::new("/nobody/here"), Order::Kill).is_err());
    }
}
