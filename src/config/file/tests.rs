//! Both formats mean the same, mistakes are named, and no text makes it panic.

use proptest::prelude::*;

use super::*;
use crate::{Access, ErrorKind, Peers, Rule};

/// Every setting but the file of keys, which goes without TLS, in TOML; and what it is then.
const ALL: &str = r#"
local_hostname = "10.0.0.7"
metadata_server = "http://10.0.0.1:8080/metadata"
metadata_lease_s = 5
protocol = "rdma"
device_name = "mlx5_0, mlx5_1"
gid_index = 3
cluster = "a"
advertise = "10.0.0.8"
bind = "::1"
shards = 2
idle = "event"
driver = "epoll"
same_host = false
socket_folder = "/run/kvrail"
peers_may_trace = true
tcp_version_1 = true
progress_deadline_s = 7
caller_spin_us = 9
tls_cert = "/etc/kvrail/cert.pem"
tls_key = "/etc/kvrail/key.pem"
tls_ca = "/etc/kvrail/ca.pem"
tls_any_name = true
allow_mooncake = true
encrypt_tcp = true

[[policy.rules]]
peers = { named = "prefill" }
regions = ["cache"]
write = true

[[policy.rules]]
peers = "mooncake"
read = true
"#;

#[test]
fn every_setting_reaches_the_builder() {
    let config = Config::from_toml(ALL).unwrap();
    let names = toml::from_str::<toml::Table>(ALL).unwrap();
    assert_eq!(names.len() + 1, known().len(), "the test has every setting");
    let builder = config.builder().unwrap();
    assert_eq!(builder.name, "10.0.0.7");
    assert_eq!(builder.metadata, Metadata::Http("http://10.0.0.1:8080/metadata".into()));
    assert_eq!(builder.metadata_lease, Duration::from_secs(5));
    assert_eq!(builder.rdma.protocol, Protocol::Rdma);
    assert_eq!(builder.rdma.devices, ["mlx5_0", "mlx5_1"]);
    assert_eq!(builder.rdma.gid_index, Some(3));
    assert_eq!(builder.cluster, "a");
    assert_eq!(builder.advertise.as_deref(), Some("10.0.0.8"));
    assert_eq!(builder.bind, Some("::1".parse().unwrap()));
    assert_eq!(builder.shards, Shards::Count(2));
    assert_eq!((builder.idle, builder.driver), (Idle::Event, Driver::Epoll));
    assert!(!builder.same_host.is_on && builder.same_host.peers_may_trace && builder.tcp_v1);
    assert_eq!(builder.same_host.folder.as_deref(), Some(Path::new("/run/kvrail")));
    assert_eq!(builder.tcp.progress_ns, 7_000_000_000);
    assert_eq!(builder.caller_spin(), Duration::from_micros(9));
    let [certificate, key, authorities] =
        ["cert", "key", "ca"].map(|name| PathBuf::from(format!("/etc/kvrail/{name}.pem")));
    let files = TlsFiles { certificate, key, authorities, names: PeerNames::Any };
    assert_eq!(builder.auth.authentication, Authentication::Tls(files));
    assert!(builder.auth.allow_mooncake && builder.auth.encrypt_tcp);
    let rules = [
        Rule::new(Peers::Named("prefill".into()), Access::WRITE).of(["cache"]),
        Rule::new(Peers::Mooncake, Access::READ),
    ];
    assert_eq!(builder.auth.policy, Policy::Rules(rules.into()));
}

#[test]
fn peers_prove_what_the_file_says_once_and_in_full() {
    let authentication = |text: &str| {
        let builder = Config::from_toml(text)?.builder()?;
        Ok::<_, Error>((builder.auth.authentication, builder.auth.allow_mooncake))
    };
    let keys = Authentication::Keys("/keys".into());
    assert_eq!(authentication("").unwrap(), (Authentication::Off, false));
    assert_eq!(authentication("key_file = '/keys'").unwrap(), (keys, false));
    let (tls, _) = authentication("tls_cert = 'a'\ntls_key = 'b'\ntls_ca = 'c'").unwrap();
    assert!(matches!(tls, Authentication::Tls(files) if files.names == PeerNames::Opened));
    for (text, words) in [
        ("key_file = '/keys'\ntls_ca = 'c'", "choose one"),
        ("tls_cert = 'a'\ntls_key = 'b'", "tls_ca"),
        ("tls_ca = 'c'", "tls_cert"),
        ("tls_any_name = true", "tls_cert"),
        ("key_file = '/keys'\ntls_any_name = true", "choose one"),
    ] {
        let error = authentication(text).unwrap_err();
        assert!(error.to_string().contains(words), "{text}: {error}");
    }
}

#[test]
fn a_file_of_mooncakes_keys_is_read_in_either_format() {
    let json = r#"{"local_hostname": "node-a", "metadata_server": "P2PHANDSHAKE",
                   "protocol": "tcp", "device_name": ["a", "b"]}"#;
    let toml = "local_hostname='node-a'\nmetadata_server='P2PHANDSHAKE'\nprotocol='tcp'\n\
                device_name=['a','b']";
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Config::from_file(path)
    };
    let config = file("a.json", json).unwrap();
    assert_eq!(config, file("a.toml", toml).unwrap());
    assert_eq!(config.builder().unwrap().rdma.devices, ["a", "b"]);
    assert_eq!(file("empty.toml", "").unwrap(), Config::default());
    for (name, text, words) in [
        ("a.yaml", toml, &["a.yaml", ".toml or .json"][..]),
        ("b.toml", "protocl = 'tcp'", &["b.toml", "\"protocl\"", "\"protocol\""]),
        ("b.json", r#"{"device_names": ""}"#, &["\"device_names\"", "\"device_name\""]),
        ("c.json", "[1]", &["c.json", "malformed"]),
        ("c.toml", "shards = 'two'", &["malformed", "shards"]),
        ("d.toml", "metadata_server = 'zookeeper://x'", &["zookeeper", "P2PHANDSHAKE"]),
        ("e.toml", &"#".repeat(CONFIG_MAX_BYTES as usize + 1), &["e.toml", "bytes"]),
    ] {
        let error = file(name, text).unwrap_err();
        let said = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(words.iter().all(|word| said.contains(word)), "{name}: {said}");
    }
    let gone = Config::from_file(folder.path().join("gone.toml")).unwrap_err().to_string();
    assert!(gone.contains("gone.toml") && gone.contains("can't be read"), "{gone}");
}

proptest! {
    #[test]
    fn a_letter_too_many_or_too_few_is_recognized(
        name in 0..known().len(),
        at: prop::sample::Index,
    ) {
        let name = &known()[name];
        let at = at.index(name.len());
        for wrong in [format!("{}{}", &name[..at], &name[at + 1..]), format!("{name}s")] {
            let error = Config::from_json(&format!("{{{wrong:?}: null}}")).unwrap_err();
            prop_assert!(error.to_string().contains(&format!("did you mean {name:?}")), "{error}");
        }
    }

    #[test]
    fn any_text_is_settings_or_an_error(text: String) {
        let _ = (Config::from_toml(&text), Config::from_json(&text));
    }
}
