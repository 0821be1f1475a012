//! The volume with a projected service-account token that identity-node's pod would have: written and replaced as a kubelet does.
//!
//! A kubelet never writes into a file that a container reads: each content is a new directory, `..data` is a symbolic link to the
//! current one that is swapped by renaming, and the file's own name is a link through it. Who watches the file sees none of it
//! change, so the product is tested with just that.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};

use crate::files;

/// Namespace and name of the service account that identity-node runs as.
pub const NODE_ACCOUNT: (&str, &str) = ("entra-pod-identity", "entra-pod-identity-node");
/// When what failed is tried again.
const AGAIN: SignedDuration = SignedDuration::from_secs(10);
/// The file's name.
const NAME: &str = "token";

/// The volume.
#[derive(Debug)]
pub struct Volume {
    directory: PathBuf,
    /// Number of the current content.
    number: u64,
    /// Between which times it is left alone.
    rest: Option<(Timestamp, Timestamp)>,
}

impl Volume {
    /// An empty one in `directory`, which is made.
    ///
    /// # Errors
    /// As the file system says.
    pub fn new(directory: &Path) -> io::Result<Self> {
        files::private_directory(directory)?;
        Ok(Self { directory: directory.to_owned(), number: 0, rest: None })
    }

    /// Where the token is.
    pub fn file(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    /// Whether it is time for another token: a fifth of its lifetime is left, or there is none, or the clock was set back to
    /// before there was one.
    pub fn due(&self, now: Timestamp) -> bool {
        self.rest.is_none_or(|(from, to)| now < from || to <= now)
    }

    /// Has [`due`](Self::due) say no for a while: another token was not to be had.
    pub fn postpone(&mut self, now: Timestamp) {
        self.rest = Some((now, now.checked_add(AGAIN).unwrap_or(now)));
    }

    /// Puts a token that was issued at `now` in the place of the one before.
    ///
    /// # Errors
    /// As the file system says; the one before stays.
    pub fn put(&mut self, token: &str, now: Timestamp, lifetime: u32) -> io::Result<()> {
        let before = format!("..{:06}", self.number);
        self.number += 1;
        let name = format!("..{:06}", self.number);
        let content = self.directory.join(&name);
        files::private_directory(&content)?;
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(content.join(NAME))?;
        file.write_all(token.as_bytes())?;
        let (next, data) = (self.directory.join("..data_tmp"), self.directory.join("..data"));
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => symlink(&name, &next)?,
        }
        fs::rename(&next, &data)?;
        if !self.file().is_symlink() {
            symlink(Path::new("..data").join(NAME), self.file())?;
        }
        // The first content there was has number 1.
        let _ = fs::remove_dir_all(self.directory.join(before));
        let life = SignedDuration::from_secs(i64::from(lifetime) * 4 / 5);
        self.rest = Some((now, now.checked_add(life).unwrap_or(Timestamp::MAX)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_replaced_as_a_kubelet_does() {
        let dir = tempfile::tempdir().unwrap();
        let at = |second: i64| Timestamp::from_second(1_795_000_000 + second).unwrap();
        let mut volume = Volume::new(&dir.path().join("v")).unwrap();
        assert!(volume.due(at(0)));
        volume.put("one", at(0), 100).unwrap();
        let file = volume.file();
        assert_eq!(fs::read_to_string(&file).unwrap(), "one");
        let resolved = fs::canonicalize(&file).unwrap();
        assert!(!volume.due(at(79)) && volume.due(at(80)));
        let opened = fs::File::open(&file).unwrap();
        volume.put("two", at(80), 100).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        assert_eq!(io::read_to_string(opened).unwrap(), "one", "a file that is open stays what it was");
        assert_ne!(fs::canonicalize(&file).unwrap(), resolved);
        assert_eq!(fs::read_link(&file).unwrap(), Path::new("..data/token"));
        let left = fs::read_dir(dir.path().join("v")).unwrap().count();
        assert_eq!(left, 3, "the content, ..data and the name; nothing of the one before");
        assert!(!volume.due(at(159)));
        assert!(volume.due(at(79)), "the clock was set back");
        volume.postpone(at(160));
        assert!(!volume.due(at(169)) && volume.due(at(170)));
    }
}
