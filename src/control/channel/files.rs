//! What was made of files, made again when they change. Files that are being replaced may not fit
//! each other for a moment, or make no sense: then what was made before holds.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::limits::{AUTH_FILE_MAX_BYTES, AUTH_FILES_LOOK_MS};

type Contents = Vec<Vec<u8>>;

type Make<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T> + Send + Sync>;

/// Some files, and what is made of their contents, in the same order.
pub(super) struct Files<T> {
    paths: Vec<PathBuf>,
    make: Make<T>,
    known: Mutex<Known<T>>,
}

struct Known<T> {
    made: Arc<T>,
    contents: Contents,
    looked: Instant,
}

impl<T> Files<T> {
    /// # Errors
    /// Refused: a file can't be read or makes no sense.
    pub fn load(
        paths: Vec<PathBuf>,
        make: impl Fn(&[Vec<u8>]) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let contents = read(&paths)?;
        let made = Arc::new(make(&contents)?);
        let known = Mutex::new(Known { made, contents, looked: Instant::now() });
        Ok(Self { paths, make: Box::new(make), known })
    }

    /// What they make now. They are looked at now and then, when somebody asks.
    pub fn now(&self) -> Arc<T> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.looked.elapsed() >= Duration::from_millis(AUTH_FILES_LOOK_MS) {
            known.looked = Instant::now();
            self.look(&mut known);
        }
        known.made.clone()
    }

    fn look(&self, known: &mut Known<T>) {
        let changed = match read(&self.paths) {
            Ok(contents) if contents == known.contents => return,
            Ok(contents) => (self.make)(&contents).map(|made| (made, contents)),
            Err(error) => Err(error),
        };
        match changed {
            Ok((made, contents)) => {
                tracing::info!(files = ?self.paths, "what peers have to prove was read again");
                (known.made, known.contents) = (Arc::new(made), contents);
            }
            Err(error) => {
                tracing::warn!(files = ?self.paths, %error, "still goes by what they were before");
            }
        }
    }
}

fn read(paths: &[PathBuf]) -> Result<Contents> {
    paths.iter().map(|path| read_one(path)).collect()
}

fn read_one(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let refused = |what: &str| Error::refused(format!("{}: {what}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| {
        refused("cannot be read: name a file that this user may read").with_source(error)
    })?;
    let mut bytes = Vec::new();
    let limit = AUTH_FILE_MAX_BYTES as u64 + 1;
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| refused("cannot be read").with_source(error))?;
    match bytes.len() <= AUTH_FILE_MAX_BYTES {
        true => Ok(bytes),
        false => Err(refused(&format!("is longer than {AUTH_FILE_MAX_BYTES} bytes"))),
    }
}
