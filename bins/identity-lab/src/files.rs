//! Writing files so that no reader ever sees half of one.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Writes a file (mode 0600) beside its place and renames it into it. Both names must be on one file system, so the temporary
/// one is in the same directory, hidden by a leading dot.
///
/// # Errors
/// As the file system says.
pub fn write_secret(path: &Path, content: &[u8]) -> io::Result<()> {
    write(path, content, 0o600, path.parent().unwrap_or(Path::new(".")))
}

/// As [`write_secret`], with a mode and a directory (on the same file system) for the temporary name: a watched directory
/// then sees exactly one event.
///
/// # Errors
/// As the file system says.
pub fn write(path: &Path, content: &[u8], mode: u32, scratch: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other(format!("{} names no file", path.display())))?;
    let temporary = scratch.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    drop(file);
    fs::rename(&temporary, path)
}

/// Creates a directory and its parents, readable by the owner only.
///
/// # Errors
/// As the file system says.
pub fn private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Creates one directory that did not exist, readable by the owner only.
///
/// # Errors
/// It exists, or as the file system says.
pub fn private_directory_new(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}
