//! The chain: each line carries the hash of the one before and of itself. Bytes in, bytes out.
//!
//! ```text
//! {"seq":17,"kind":"token",…,"hash":"<h17>"}\n        h17 = SHA-256( h16 ‖ `{"seq":17,"kind":"token",…` )
//! ```

use std::{fmt, str::FromStr};

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::audit::json;

const BEGIN: &[u8] = b"{\"seq\":";
const KIND: &[u8] = b"\"kind\":\"";
const SEAL: &[u8] = b",\"hash\":\"";
const END: &[u8] = b"\"}";
const DIGITS: usize = 64;

/// A SHA-256. As text: 64 hexadecimal digits in lower case.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// What the first record of a journal follows.
    pub const NONE: Self = Self([0; 32]);

    fn write(self, into: &mut Vec<u8>) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        for byte in self.0 {
            into.push(HEX[usize::from(byte >> 4)]);
            into.push(HEX[usize::from(byte & 15)]);
        }
    }

    fn read(digits: &[u8]) -> Option<Self> {
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            // Only one spelling, or a changed letter would go unnoticed.
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        if digits.len() != DIGITS {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a hash is 64 hexadecimal digits in lower case")]
pub struct NotAHash;

impl FromStr for Hash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Self, NotAHash> {
        Self::read(text.as_bytes()).ok_or(NotAHash)
    }
}

impl TryFrom<String> for Hash {
    type Error = NotAHash;

    fn try_from(text: String) -> Result<Self, NotAHash> {
        text.parse()
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> Self {
        hash.to_string()
    }
}

/// The last record of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Its number; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Head {
    /// Appends the next record to `into`, a line of `fields` (without braces), and is at that one then.
    pub fn seal(&mut self, fields: &[u8], into: &mut Vec<u8>) {
        let start = into.len();
        self.seq += 1;
        into.extend_from_slice(BEGIN);
        json::decimal(into, self.seq);
        into.push(b',');
        into.extend_from_slice(fields);
        self.hash = hash(&self.hash, &into[start..]);
        into.extend_from_slice(SEAL);
        self.hash.write(into);
        into.extend_from_slice(END);
        into.push(b'\n');
    }
}

fn hash(before: &Hash, sealed: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(&before.0);
    context.update(sealed);
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    Hash(hash)
}

/// A line, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its number.
    pub seq: u64,
    /// What it is about.
    pub kind: &'a str,
    /// The hash in it.
    pub hash: Hash,
    sealed: &'a [u8],
}

impl<'a> Line<'a> {
    /// Takes a line (without its end) apart; `None` when it has not the form of one.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let rest = line.strip_prefix(BEGIN)?;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = std::str::from_utf8(&rest[..digits]).ok()?;
        if number.starts_with('0') {
            return None;
        }
        let seq = number.parse().ok()?;
        let kind = rest[digits..].strip_prefix(b",")?.strip_prefix(KIND)?;
        let kind = std::str::from_utf8(&kind[..kind.iter().position(|byte| *byte == b'"')?]).ok()?;
        let sealed = line.len().checked_sub(SEAL.len() + DIGITS + END.len())?;
        let (sealed, seal) = line.split_at(sealed);
        let hash = Hash::read(seal.strip_prefix(SEAL)?.strip_suffix(END)?)?;
        Some(Self { seq, kind, hash, sealed })
    }

    /// The hash that it should have after a record of hash `before`.
    pub fn after(&self, before: &Hash) -> Hash {
        hash(before, self.sealed)
    }

    /// Whether its hash is the one that it has after a record of hash `before`.
    pub fn follows(&self, before: &Hash) -> bool {
        self.after(before) == self.hash
    }

    /// The head of a chain that ends here.
    pub const fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_and_its_parts() {
        let mut head = Head::default();
        let mut text = Vec::new();
        head.seal(b"\"kind\":\"token\",\"resource\":\"r\"", &mut text);
        let first = head;
        head.seal(b"\"kind\":\"stop\"", &mut text);
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<_> = text.lines().collect();
        // Computed with sha256sum: 32 zero bytes, then the text before `,"hash"`.
        assert_eq!(
            lines[0],
            "{\"seq\":1,\"kind\":\"token\",\"resource\":\"r\",\"hash\":\"@1\"}".replace("@1", &first.hash.to_string())
        );
        let parsed = Line::parse(lines[1].as_bytes()).unwrap();
        assert_eq!((parsed.seq, parsed.kind, parsed.head()), (2, "stop", head));
        assert!(parsed.follows(&first.hash) && !parsed.follows(&Hash::NONE));
        assert_eq!(first.hash.to_string().parse(), Ok(first.hash));
    }

    #[test]
    fn what_is_no_line() {
        let hash = Hash::NONE.to_string();
        let line = |text: &str| text.replace('@', &hash);
        assert!(Line::parse(line(r#"{"seq":1,"kind":"a","hash":"@"}"#).as_bytes()).is_some());
        for wrong in [
            "",
            "{}",
            r#"{"seq":01,"kind":"a","hash":"@"}"#,
            r#"{"seq":0,"kind":"a","hash":"@"}"#,
            r#"{"seq":-1,"kind":"a","hash":"@"}"#,
            r#"{"seq":,"kind":"a","hash":"@"}"#,
            r#"{"seq":18446744073709551616,"kind":"a","hash":"@"}"#,
            r#"{"seq":1,"hash":"@"}"#,
            r#"{"seq":1,"kind":"a","hash":"@"} "#,
            r#"{"seq":1,"kind":"a","hash":"@0"}"#,
            r#"{"seq":1,"kind":"a,"hash":"@"#,
        ] {
            assert_eq!(Line::parse(line(wrong).as_bytes()), None, "{wrong}");
        }
        let upper = Hash([0xab; 32]).to_string().to_uppercase();
        assert_eq!(upper.parse::<Hash>(), Err(NotAHash));
    }
}
