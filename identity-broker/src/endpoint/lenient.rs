//! How a lenient server could read a path: the other side of the differential test of [`normalise`](super::normalise).
//! Shares no code with it and depends on nothing, so that the fuzz target can include this file by its path.

#![allow(unreachable_pub, reason = "also a module of the fuzz target")]

/// The readings that lenient servers could have of a path: decoded again and again, `\` as `/`, `;…` cut off, dot
/// segments resolved, empty segments removed, trailing dots and spaces lost, without case, cut at a NUL. All of them, by
/// what each step does or leaves.
pub fn lenient_readings(path: &str) -> Vec<Vec<String>> {
    let mut decoded = vec![path.as_bytes().to_vec()];
    for _ in 0..3 {
        let next = percent_once(decoded.last().expect("one to begin with"));
        decoded.push(next);
    }
    let mut readings = Vec::new();
    for bytes in decoded {
        let bytes: Vec<u8> = bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        let text = text.split(['?', '#']).next().unwrap_or_default().to_owned();
        for text in [text.clone(), text.replace('\\', "/")] {
            for cut_parameters in [false, true] {
                let mut segments: Vec<String> = Vec::new();
                for segment in text.split('/') {
                    let segment = if cut_parameters { segment.split(';').next().unwrap_or_default() } else { segment };
                    let segment = segment.trim();
                    match segment {
                        "" | "." => {}
                        ".." => {
                            segments.pop();
                        }
                        _ => segments.push(segment.trim_end_matches(['.', ' ']).to_owned()),
                    }
                }
                readings.push(segments);
            }
        }
    }
    readings
}

/// `%XX`, `%uXXXX` and overlong encodings of ASCII, as forgiving decoders read them.
fn percent_once(bytes: &[u8]) -> Vec<u8> {
    let hex = |from: usize, digits: usize| {
        let text = std::str::from_utf8(bytes.get(from..from + digits)?).ok()?;
        u32::from_str_radix(text, 16).ok()
    };
    let mut decoded: Vec<u8> = Vec::new();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if *byte == b'%'
            && let Some(value) = hex(at + 1, 2)
        {
            decoded.push(u8::try_from(value).expect("two digits"));
            at += 3;
        } else if *byte == b'%'
            && bytes.get(at + 1).is_some_and(|b| b.eq_ignore_ascii_case(&b'u'))
            && let Some(value) = hex(at + 2, 4)
        {
            // Full-width and other look-alikes are folded by best fit; ASCII is what matters here.
            decoded.push(u8::try_from(value & 0x7f).expect("seven bits"));
            at += 6;
        } else {
            decoded.push(*byte);
            at += 1;
        }
    }
    // Overlong: C0 AF is "/".
    let mut folded = Vec::new();
    let mut rest = decoded.as_slice();
    while let Some((first, tail)) = rest.split_first() {
        if matches!(first, 0xc0 | 0xc1)
            && let Some(second) = tail.first().filter(|second| **second & 0xc0 == 0x80)
        {
            folded.push((first & 1) << 6 | second & 0x3f);
            rest = &tail[1..];
        } else {
            folded.push(*first);
            rest = tail;
        }
    }
    folded
}

/// Whether a reading leads to where credentials are given out.
pub fn gives_credentials(segments: &[String]) -> bool {
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    matches!(segments[..], ["metadata", "identity", ..] | ["oauth2" | "msi", "token", ..])
}
