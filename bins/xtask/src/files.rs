//! Small helpers over the file system.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::Context;

/// Reads a text file.
///
/// # Errors
/// Naming the file.
pub fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file whole: beside it first, then renamed over it, so that no reader sees half of it.
///
/// # Errors
/// Naming the file.
pub fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let directory = path.parent().context("a file without a directory")?;
    // A name that directory watchers for *.yaml ignore.
    let beside = directory.join(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    fs::write(&beside, text).with_context(|| format!("cannot write {}", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Holds an exclusive lock on `path` until dropped: two commands at once install a thing once.
///
/// # Errors
/// Naming the file.
pub fn lock(path: &Path) -> anyhow::Result<File> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// A short name for a content, stable across machines (FNV-1a, 64 bit): the key of a cache entry.
pub fn key(parts: &[&str]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        // The length keeps ("ab","c") and ("a","bc") apart.
        for byte in (part.len() as u64).to_le_bytes().iter().chain(part.as_bytes()) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn keys_depend_on_content_and_boundaries() {
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["a", "b"]), key(&["a", "c"]));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
    }
}
