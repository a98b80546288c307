//! The command line as people and scripts use it: real processes, real options.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};

/// A server process, ended with the test.
struct Server(Child);

impl Server {
    /// Starts it and reads what follows `word` on its first line.
    fn start(arguments: &[&str], word: &str) -> (Self, String) {
        let mut child = kvrail(arguments).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let server = Self(child);
        let found = line.trim().strip_prefix(word).expect("the line says it").trim().to_owned();
        (server, found)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn kvrail(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
    command.args(arguments).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Output {
    kvrail(arguments).output().expect("it runs")
}

fn json(output: &Output) -> serde_json::Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).expect("one line of JSON")
}

const TARGET: &[&str] = &["bench", "--mode", "target", "--buffer-size", "16M"];

#[test]
fn a_target_and_an_initiator_find_each_other_and_verify_their_bytes() {
    let (_target, segment) = Server::start(TARGET, "segment");
    for operation in ["read", "write"] {
        let report = json(&run(&[
            "bench",
            "--mode=initiator",
            "--metadata_server=P2PHANDSHAKE",
            "--protocol=tcp",
            &format!("--segment_id={segment}"),
            &format!("--operation={operation}"),
            "--block_size=64K",
            "--batch_size=8",
            "--threads=2",
            "--duration=1",
            "--buffer_size=16M",
            "--verify",
            "--json",
        ]));
        assert_eq!(report["verified"], true);
        assert_eq!(report["operation"], operation);
        assert_eq!(report["path"], "host", "one host, and nobody ruled it out");
        assert_eq!(report["block_bytes"], 65536);
        assert!(report["batches"].as_u64().is_some_and(|batches| batches > 0));
    }
}

#[test]
fn batches_take_turns_among_segments_and_callers_may_be_tasks_on_shards() {
    let (_target, one) = Server::start(TARGET, "segment");
    let (_other, two) = Server::start(TARGET, "segment");
    let segments = format!("--segment-id={one},{two}");
    let shape = ["--block-size=64K", "--batch-size=8", "--threads=2", "--duration=0.2"];
    let initiator = ["bench", "--mode=initiator", "--buffer-size=16M", "--callers-on-shards"];
    let rest = ["--path=tcp", "--verify", "--json", &segments];
    let report = json(&run(&[&initiator[..], &shape, &rest].concat()));
    assert_eq!((&report["verified"], &report["threads"]), (&true.into(), &2.into()));
    let crowd = ["--batch-size=128", "--threads=2", "--json", "--walk=2", &segments];
    let output = run(&[&initiator[..], &["--block-size=64K"], &crowd].concat());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        error.contains("32M of blocks at a time") && error.contains("fewer segments"),
        "{error}"
    );
}

#[test]
fn one_process_measures_the_cells_it_is_asked_for() {
    let foreign = ["--memory", "foreign", "--path", "tcp"];
    let (_target, segment) = Server::start(&[TARGET, &foreign].concat(), "segment");
    let initiator = ["bench", "--mode", "initiator", "--segment-id", &segment, "--cells"];
    let rest = ["--buffer-size", "16M", "--threads", "1", "--batch-size", "4", "--verify"];
    let mut child = kvrail(&[&initiator[..], &rest, &foreign].concat());
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let cells = "write 4K 16 0.05\nread 1M 2 0.05\nread 16M 2 0.05\nread 4K\nread 4K 1 0.05 9\n\
                 verify\nverify-replay 1M 0:20,10:3\nreplay 4K 0:2\nreplay 4K 0\n";
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(cells.as_bytes()).expect("it is read");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends with its input");
    let text = String::from_utf8(output.stdout).expect("text");
    let answers: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(answers.len(), 10, "{text}");
    assert_eq!((&answers[0]["ready"], &answers[0]["path"]), (&true.into(), &"tcp".into()));
    assert_eq!((&answers[1]["operation"], &answers[1]["batch"]), (&"write".into(), &16.into()));
    assert_eq!(answers[2]["block_bytes"], 1 << 20);
    assert!(answers[3]["error"].as_str().is_some_and(|error| error.contains("buffers have 16M")));
    assert!(answers[4]["error"].as_str().is_some_and(|error| error.contains("BLOCK BATCH")));
    assert!(answers[5]["batches"].as_u64().is_some_and(|batches| batches > 0), "{text}");
    assert_eq!(answers[6], serde_json::json!({"verified": true}));
    // More than the buffers hold goes through them again.
    assert_eq!((&answers[7]["verified"], &answers[7]["batches"]), (&true.into(), &23.into()));
    assert!(answers[7]["batch_latency_us"]["p75"].is_number(), "{text}");
    assert_eq!((&answers[8]["batches"], &answers[8]["block_bytes"]), (&2.into(), &4096.into()));
    assert!(answers[9]["error"].as_str().is_some_and(|error| error.contains("MS:BLOCKS")));
}

#[test]
fn a_metadata_server_brings_them_together_by_name() {
    let arguments = ["metadata-server", "--host", "127.0.0.1", "--port", "0"];
    let (_server, url) = Server::start(&arguments, "metadata server at");
    let named = ["--local-server-name", "node-a", "--metadata-server", &url];
    let (_target, segment) = Server::start(&[TARGET, &named].concat(), "segment");
    assert_eq!(segment, "node-a");
    let initiator = ["bench", "--mode", "initiator", "--segment-id", "node-a"];
    let named = ["--local-server-name", "node-b", "--metadata-server", &url];
    let shape = ["--batch-size", "4", "--threads", "1", "--duration", "1"];
    let rest = ["--buffer-size", "16M", "--verify", "--json"];
    let report = json(&run(&[&initiator[..], &named, &shape, &rest].concat()));
    assert_eq!(report["verified"], true);
}

#[test]
fn a_person_gets_a_table() {
    let local = ["bench", "--mode", "initiator", "--path", "local", "--duration", "1"];
    let shape = ["--batch-size", "4", "--threads", "1", "--buffer-size", "16M", "--verify"];
    let output = run(&[&local[..], &shape].concat());
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in ["read over local", "GB/s", "p50", "p99.9", "s/GB", "idle policy", "verified"] {
        assert!(table.contains(word), "{word} is not in:\n{table}");
    }
}

#[test]
fn mistakes_are_named_with_their_remedy() {
    let initiator = ["bench", "--mode", "initiator", "--buffer-size", "1M"];
    let gone = ["--segment-id", "127.0.0.1:1"];
    for (arguments, words) in [
        (&[][..], "--segment-id"),
        (&["--path", "local", "--block-size", "1M"], "the buffers have 1M"),
        (&["--path", "local", "--threads", "0"], "1 or more"),
        (&["--block-size", "1X"], "write 65536, 64K"),
        (&["--duration", "0"], "write seconds"),
        (&["--metadata-server", "zookeeper://x"], "P2PHANDSHAKE"),
        (&gone, "127.0.0.1:1"),
    ] {
        let output = run(&[&initiator, arguments].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(error.contains(words), "{arguments:?} says: {error}");
    }
}

#[test]
fn a_bench_of_engines_that_prove_who_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = |name: &str, digit: &str| format!("{name} = {}\n", digit.repeat(64));
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        format!("--key-file={}", path.display())
    };
    let target = file("target", key("target", "a") + &key("initiator", "b"));
    let (good, bad) = (file("good", key("initiator", "b")), file("bad", key("initiator", "c")));
    let arguments = [TARGET, &[target.as_str()]].concat();
    let (_target, segment) = Server::start(&arguments, "segment");
    let segment = format!("--segment_id={segment}");
    let initiate = |keys: &[&str]| {
        let options = ["bench", "--mode=initiator", "--duration=0.2", "--threads=1", "--verify"];
        run(&[&options[..], &["--buffer_size=16M", "--json", &segment], keys].concat())
    };
    assert_eq!(json(&initiate(&[&good]))["verified"], true);
    let config = folder.path().join("kvrail.toml");
    let in_config = format!("key_file = {:?}", folder.path().join("good"));
    std::fs::write(&config, in_config).expect("a file");
    let config = format!("--config={}", config.display());
    assert_eq!(json(&initiate(&[&config]))["verified"], true);
    for keys in [&[bad.as_str()][..], &[], &[&config, &bad]] {
        let output = initiate(keys);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("kvrail: "), "{error}");
    }
    let half = run(&["bench", "--mode=target", "--tls-cert=x"]);
    assert!(String::from_utf8_lossy(&half.stderr).contains("--tls-key"));
}
