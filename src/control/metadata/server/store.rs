//! What a metadata server keeps: JSON documents by key. Pure; bounded in keys and bytes.

use std::collections::HashMap;

use axum::body::Bytes;

use super::ServerLimits;
use crate::control::descriptor::RpcMeta;
use crate::control::wire::{self, AnyObject};
use crate::limits::METADATA_KEY_MAX_BYTES;

/// Keys with this in them are put once, whoever comes first.
const OWNED: &str = "rpc_meta";

#[derive(Debug)]
pub(super) struct Store {
    documents: HashMap<String, Bytes>,
    bytes: usize,
    limits: ServerLimits,
}

/// Why a request is denied; the text is the answer's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    #[error("No key")]
    NoKey,
    #[error("The key is longer than {METADATA_KEY_MAX_BYTES} bytes")]
    KeyTooLong,
    /// Mooncake's words.
    #[error("Duplicate rpc_meta key not allowed")]
    Duplicate,
    /// A document of another shape would end the Mooncake process that reads it.
    #[error("The document is not a JSON object")]
    NotAnObject,
    #[error("The server is full: delete keys of engines that are gone")]
    Full,
}

impl Store {
    pub fn new(limits: ServerLimits) -> Self {
        Self { documents: HashMap::new(), bytes: 0, limits }
    }

    pub fn get(&self, key: &str) -> Result<Option<Bytes>, Denied> {
        check(key)?;
        Ok(self.documents.get(key).cloned())
    }

    /// Stores the document, and says what became of it.
    pub fn put(&mut self, key: &str, document: &[u8]) -> Result<&'static str, Denied> {
        check(key)?;
        wire::parse_object::<AnyObject>(document).map_err(|_| Denied::NotAnObject)?;
        let before = self.documents.get(key);
        if before.is_some_and(|before| **before == *document) {
            return Ok("metadata unchanged");
        }
        if before.is_some_and(|before| key.contains(OWNED) && !same_host(before, document)) {
            return Err(Denied::Duplicate);
        }
        self.insert(key, document)?;
        Ok("metadata updated")
    }

    /// Whether there was such a key.
    pub fn delete(&mut self, key: &str) -> Result<bool, Denied> {
        check(key)?;
        let removed = self.documents.remove(key);
        self.bytes -= removed.as_ref().map_or(0, |document| key.len() + document.len());
        Ok(removed.is_some())
    }

    fn insert(&mut self, key: &str, document: &[u8]) -> Result<(), Denied> {
        let before = self.documents.get(key).map(|before| key.len() + before.len());
        let bytes = self.bytes - before.unwrap_or(0) + key.len() + document.len();
        let keys = self.documents.len() + usize::from(before.is_none());
        if keys > self.limits.keys || bytes > self.limits.total_bytes {
            return Err(Denied::Full);
        }
        // A copy: the request's bytes may be a small part of a large buffer.
        self.documents.insert(key.to_owned(), Bytes::copy_from_slice(document));
        self.bytes = bytes;
        Ok(())
    }
}

fn check(key: &str) -> Result<(), Denied> {
    match key.len() {
        0 => Err(Denied::NoKey),
        1..=METADATA_KEY_MAX_BYTES => Ok(()),
        _ => Err(Denied::KeyTooLong),
    }
}

/// Whether both say that the engine is at the same host: then it was restarted there.
fn same_host(before: &[u8], after: &[u8]) -> bool {
    match (RpcMeta::parse(before), RpcMeta::parse(after)) {
        (Ok(before), Ok(after)) => before.ip_or_host_name == after.ip_or_host_name,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RPC: &str = "mooncake/rpc_meta/node-a";

    fn store(keys: usize, total_bytes: usize) -> Store {
        Store::new(ServerLimits { keys, total_bytes, ..ServerLimits::default() })
    }

    fn rpc_meta(host: &str, rpc_port: u16) -> Vec<u8> {
        RpcMeta { ip_or_host_name: host.to_owned(), rpc_port }.to_json()
    }

    #[test]
    fn documents_come_and_go() {
        let mut store = store(10, 1000);
        assert_eq!(store.get("k"), Ok(None));
        store.put("k", b"{\"a\":1}").unwrap();
        store.put("k", b"{\"a\":2}").unwrap();
        assert_eq!(store.get("k"), Ok(Some(Bytes::from_static(b"{\"a\":2}"))));
        assert_eq!(store.delete("k"), Ok(true));
        assert_eq!(store.delete("k"), Ok(false));
        assert_eq!(store.bytes, 0);
    }

    #[test]
    fn a_registered_name_stays_with_its_host() {
        let mut store = store(10, 1000);
        store.put(RPC, &rpc_meta("10.0.0.1", 1)).unwrap();
        assert_eq!(store.put(RPC, &rpc_meta("10.0.0.1", 1)), Ok("metadata unchanged"));
        assert_eq!(store.put(RPC, &rpc_meta("10.0.0.1", 2)), Ok("metadata updated"));
        assert_eq!(store.put(RPC, &rpc_meta("10.0.0.2", 2)), Err(Denied::Duplicate));
        assert_eq!(store.put(RPC, b"{}"), Err(Denied::Duplicate));
    }

    #[test]
    fn bounds_hold() {
        let mut store = store(2, 20);
        store.put("a", b"{\"x\":1}").unwrap();
        store.put("b", b"{}").unwrap();
        assert_eq!(store.put("c", b"{}"), Err(Denied::Full), "too many keys");
        assert_eq!(store.put("b", b"{\"x\":123456}"), Err(Denied::Full), "too many bytes");
        store.put("b", b"{\"x\":12345}").unwrap();
        assert_eq!(store.bytes, 20);
    }

    #[test]
    fn bad_keys_and_documents_are_denied() {
        let mut store = store(10, 1000);
        assert_eq!(store.put("", b"{}"), Err(Denied::NoKey));
        assert_eq!(store.put(&"k".repeat(1025), b"{}"), Err(Denied::KeyTooLong));
        for document in [&b"[1]"[..], b"", b"{", b"null", b"{\"a\":}", b"\xff"] {
            assert_eq!(store.put("k", document), Err(Denied::NotAnObject));
        }
        assert_eq!(store.get("k"), Ok(None));
    }
}
