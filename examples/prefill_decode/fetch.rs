//! Where the model comes from: the user's cache folder, filled once by `model.sh`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::llama::Failure;
use crate::shape::Shape;
use crate::weights::Model;

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SCRIPT: &str = include_str!("model.sh");
/// Of the random weights: any number would do, but every process must use the same.
const SEED: u64 = 0x6b76_7261_696c;

/// The model to run: the real one, fetched if need be, or random weights if it can't be had.
pub fn model() -> Result<Model, Failure> {
    if let Some(path) = find() {
        return Ok(Model::load(&path)?);
    }
    match fetch() {
        Ok(path) => Ok(Model::load(&path)?),
        Err(failure) => {
            eprintln!(
                "\n*** NO MODEL: {failure}\n*** Going on with random weights of the same shape: \
                 the answers are nonsense, the work and the bytes are real.\n"
            );
            Ok(Model::random(Shape::SMOLLM2, SEED))
        }
    }
}

/// Random weights of SmolLM2's shape: nothing to fetch, the same work, nonsense for text.
pub fn random() -> Model {
    Model::random(Shape::SMOLLM2, SEED)
}

/// The model file, if it is where `model.sh` puts it.
pub fn find() -> Option<PathBuf> {
    let folder = folder(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))?;
    Some(folder.join(FILE)).filter(|path| path.is_file())
}

/// kvrail's part of the user's cache folder. An empty variable counts as unset.
fn folder(cache: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let set = |variable: Option<OsString>| variable.filter(|value| !value.is_empty());
    let in_home = || Some(PathBuf::from(set(home)?).join(".cache"));
    Some(set(cache).map(PathBuf::from).or_else(in_home)?.join("kvrail"))
}

fn fetch() -> Result<PathBuf, Failure> {
    let mut shell = Command::new("sh");
    let shell = shell.args(["-c", SCRIPT, "model.sh"]).stdin(Stdio::null());
    let output = shell.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("model.sh ended with {}", output.status).into());
    }
    find().ok_or_else(|| "model.sh left no file".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_folder_is_the_scripts() {
        let folder = |cache: Option<&str>, home: Option<&str>| {
            folder(cache.map(Into::into), home.map(Into::into))
        };
        assert_eq!(folder(Some("/c"), Some("/h")), Some("/c/kvrail".into()));
        assert_eq!(folder(Some(""), Some("/h")), Some("/h/.cache/kvrail".into()));
        assert_eq!(folder(None, Some("/h")), Some("/h/.cache/kvrail".into()));
        assert_eq!(folder(None, None), None);
        assert!(SCRIPT.contains("dir=\"${XDG_CACHE_HOME:-$HOME/.cache}/kvrail\"\n"));
        assert!(SCRIPT.contains(&format!("name={FILE}\n")));
    }
}
