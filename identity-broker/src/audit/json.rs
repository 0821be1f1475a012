//! Records as JSON, written by hand into a buffer: this is on the way of every token, and costs a third of what a general
//! serialiser costs.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
};

use identity_core::lookup::ObjectRef;
use jiff::Timestamp;

use super::AuditRecord;

/// The longest text of one field, in bytes. What is longer is cut and ends in `…`: pods choose some of them.
const LONGEST: usize = 2048;

/// Appends the fields of a record, `"verdict":"issued",…` without braces and without its time. What is unknown is left out.
pub fn fields(into: &mut Vec<u8>, record: &AuditRecord<'_>) {
    into.extend_from_slice(b"\"verdict\":\"");
    into.extend_from_slice(record.verdict.as_str().as_bytes());
    into.extend_from_slice(b"\",\"reason\":\"");
    into.extend_from_slice(record.reason.as_str().as_bytes());
    into.push(b'"');
    if !record.detail.is_empty() {
        field(into, b",\"detail\":", record.detail);
    }
    if !record.node.is_empty() {
        field(into, b",\"node\":", record.node);
    }
    into.extend_from_slice(b",\"address\":\"");
    address(into, record.address);
    into.push(b'"');
    if let Some(destination) = record.destination {
        into.extend_from_slice(b",\"destination\":\"");
        match destination {
            SocketAddr::V4(v4) => {
                address(into, (*v4.ip()).into());
                into.push(b':');
                decimal(into, v4.port().into());
            }
            // Writing to a Vec cannot fail, here and below.
            SocketAddr::V6(v6) => drop(write!(into, "{v6}")),
        }
        into.push(b'"');
    }
    if let Some(pod) = record.pod {
        field(into, b",\"pod_namespace\":", &pod.namespace);
        field(into, b",\"pod\":", &pod.name);
        field(into, b",\"pod_uid\":", &pod.uid);
        if !pod.service_account.is_empty() {
            field(into, b",\"service_account\":", &pod.service_account);
        }
    }
    if let Some(binding) = record.binding {
        named(into, b",\"binding\":", binding);
        field(into, b",\"binding_uid\":", &binding.uid);
        into.extend_from_slice(b",\"binding_generation\":");
        signed(into, binding.generation);
    }
    if let Some(identity) = record.identity {
        named(into, b",\"identity\":", identity);
        field(into, b",\"identity_uid\":", &identity.uid);
        into.extend_from_slice(b",\"identity_generation\":");
        signed(into, identity.generation);
    }
    if let Some(kind) = record.identity_type {
        into.extend_from_slice(b",\"identity_type\":");
        signed(into, kind.as_i32().into());
    }
    if let Some(exception) = record.exception {
        named(into, b",\"exception\":", exception);
        field(into, b",\"exception_uid\":", &exception.uid);
    }
    optional(into, b",\"grant\":", record.grant);
    field(into, b",\"resource\":", record.resource);
    optional(into, b",\"client_id\":", record.client_id);
    optional(into, b",\"source\":", record.source.map(super::TokenSource::as_str));
    if let Some(end) = record.token_expires_on {
        into.extend_from_slice(b",\"token_expires_on\":\"");
        seconds(into, end);
        into.push(b'"');
    }
    if let Some(end) = record.expires_on {
        into.extend_from_slice(b",\"expires_on\":\"");
        seconds(into, end);
        into.push(b'"');
    }
    optional(into, b",\"token_id\":", record.token_id);
    optional(into, b",\"uti\":", record.uti);
    optional(into, b",\"upstream_request_id\":", record.upstream_request_id);
    optional(into, b",\"correlation_id\":", record.correlation_id);
    if record.suppressed > 0 {
        into.extend_from_slice(b",\"suppressed\":");
        decimal(into, record.suppressed);
    }
}

/// Appends `key`, which is `,"name":` as it stands in the text, and a string.
pub(super) fn field(into: &mut Vec<u8>, key: &[u8], text: &str) {
    into.extend_from_slice(key);
    string(into, text);
}

fn optional(into: &mut Vec<u8>, key: &[u8], text: Option<&str>) {
    if let Some(text) = text {
        field(into, key, text);
    }
}

fn named(into: &mut Vec<u8>, key: &[u8], object: &ObjectRef) {
    into.extend_from_slice(key);
    if is_plain(object.namespace.as_bytes()) && is_plain(object.name.as_bytes()) {
        into.push(b'"');
        into.extend_from_slice(object.namespace.as_bytes());
        into.push(b'/');
        into.extend_from_slice(object.name.as_bytes());
        into.push(b'"');
    } else {
        string(into, &format!("{}/{}", object.namespace, object.name));
    }
}

/// Appends a JSON string.
pub(super) fn string(into: &mut Vec<u8>, text: &str) {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        // A string always serialises.
        let _ = serde_json::to_writer(&mut *into, &format!("{}…", &text[..end]));
    } else if is_plain(text.as_bytes()) {
        into.push(b'"');
        into.extend_from_slice(text.as_bytes());
        into.push(b'"');
    } else {
        let _ = serde_json::to_writer(&mut *into, text);
    }
}

/// Whether nothing in it has to be escaped. Without a branch for each byte, so that many are looked at together.
fn is_plain(bytes: &[u8]) -> bool {
    let odd = |byte: u8| u8::from(byte < 0x20) | u8::from(byte == b'"') | u8::from(byte == b'\\');
    bytes.iter().fold(0, |sum, byte| sum | odd(*byte)) == 0
}

fn address(into: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            for (at, octet) in v4.octets().into_iter().enumerate() {
                if at > 0 {
                    into.push(b'.');
                }
                decimal(into, octet.into());
            }
        }
        IpAddr::V6(v6) => drop(write!(into, "{v6}")),
    }
}

pub(super) fn decimal(into: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
        if number == 0 {
            break;
        }
    }
    into.extend_from_slice(&digits[at..]);
}

fn signed(into: &mut Vec<u8>, number: i64) {
    if number < 0 {
        into.push(b'-');
    }
    decimal(into, number.unsigned_abs());
}

/// Appends RFC 3339 in UTC, to the second, without quotes.
pub fn seconds(into: &mut Vec<u8>, time: Timestamp) {
    date_and_time(into, time.as_second(), time);
    into.push(b'Z');
}

/// Appends RFC 3339 in UTC, to the microsecond, without quotes.
pub fn micros(into: &mut Vec<u8>, time: Timestamp) {
    let nanos = time.as_nanosecond();
    // Times before 1970 count their fraction downwards.
    let second = i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or_default();
    let micros = u32::try_from(nanos.rem_euclid(1_000_000_000) / 1000).unwrap_or_default();
    date_and_time(into, second, time);
    into.push(b'.');
    padded(into, micros, 6);
    into.push(b'Z');
}

/// `2026-11-24T12:47:34`. A clock that is read for each record would otherwise cost more than the rest of it.
fn date_and_time(into: &mut Vec<u8>, second: i64, time: Timestamp) {
    const DAY: i64 = 86_400;
    let (days, of_day) = (second.div_euclid(DAY), second.rem_euclid(DAY));
    // Days to a date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let Ok(year) = u32::try_from(year) else {
        // Before the year 0 there is no RFC 3339.
        let text = time.to_string();
        into.extend_from_slice(text.trim_end_matches('Z').split('.').next().unwrap_or_default().as_bytes());
        return;
    };
    let small = |number: i64| u32::try_from(number).unwrap_or_default();
    padded(into, year, 4);
    into.push(b'-');
    padded(into, small(month), 2);
    into.push(b'-');
    padded(into, small(day), 2);
    into.push(b'T');
    padded(into, small(of_day / 3600), 2);
    into.push(b':');
    padded(into, small(of_day / 60 % 60), 2);
    into.push(b':');
    padded(into, small(of_day % 60), 2);
}

fn padded(into: &mut Vec<u8>, mut number: u32, width: usize) {
    let start = into.len();
    into.resize(start + width, b'0');
    for digit in into[start..].iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use identity_core::pod::PodRef;
    use identity_crd::IdentityType;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        Reason,
        audit::{TokenSource, Verdict},
    };

    fn parsed(record: &AuditRecord<'_>) -> Value {
        let mut text = b"{".to_vec();
        fields(&mut text, record);
        text.push(b'}');
        serde_json::from_slice(&text).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&text)))
    }

    #[test]
    fn every_field_is_there() {
        let time = Timestamp::from_second(1_800_000_000).unwrap();
        let pod = PodRef {
            namespace: "demo".into(),
            name: "reader".into(),
            uid: "u".into(),
            service_account: "reader-sa".into(),
        };
        let object = |name: &str, generation| ObjectRef {
            namespace: "demo".into(),
            name: name.into(),
            uid: format!("uid-{name}").into(),
            generation,
        };
        let (binding, identity, exception) = (object("b", 3), object("i", -1), object("e", 1));
        let record = AuditRecord {
            node: "node-1",
            detail: "said \"so\"\n",
            destination: Some("169.254.169.254:80".parse().unwrap()),
            pod: Some(&pod),
            binding: Some(&binding),
            identity: Some(&identity),
            identity_type: Some(IdentityType::ServicePrincipalCertificate),
            exception: Some(&exception),
            grant: Some("g"),
            client_id: Some("c"),
            source: Some(TokenSource::Cache),
            token_expires_on: Some(time),
            expires_on: Some(Timestamp::from_second(1_799_999_999).unwrap()),
            token_id: Some("0123456789abcdef"),
            uti: Some("uti"),
            upstream_request_id: Some("r"),
            correlation_id: Some("k"),
            suppressed: 18_446_744_073_709_551_615,
            ..AuditRecord::new(
                time,
                Verdict::Issued,
                Reason::Issued,
                [10, 42, 1, 255].into(),
                "https://vault.azure.net",
            )
        };
        assert_eq!(
            parsed(&record),
            json!({
                "verdict": "issued", "reason": "issued", "detail": "said \"so\"\n", "node": "node-1", "address": "10.42.1.255",
                "destination": "169.254.169.254:80", "pod_namespace": "demo", "pod": "reader", "pod_uid": "u",
                "service_account": "reader-sa", "binding": "demo/b", "binding_uid": "uid-b", "binding_generation": 3,
                "identity": "demo/i", "identity_uid": "uid-i", "identity_generation": -1, "identity_type": 2,
                "exception": "demo/e", "exception_uid": "uid-e", "grant": "g", "resource": "https://vault.azure.net",
                "client_id": "c", "source": "cache", "token_expires_on": "2027-01-15T08:00:00Z",
                "expires_on": "2027-01-15T07:59:59Z", "token_id": "0123456789abcdef", "uti": "uti",
                "upstream_request_id": "r", "correlation_id": "k", "suppressed": 18_446_744_073_709_551_615_u64,
            })
        );
        let short = AuditRecord::new(time, Verdict::Denied, Reason::NoBinding, "fd00::1".parse().unwrap(), "");
        assert_eq!(
            parsed(&short),
            json!({"verdict": "denied", "reason": "no_binding", "address": "fd00::1", "resource": ""})
        );
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_at_a_character() {
        let long = "ä".repeat(LONGEST);
        let mut text = Vec::new();
        string(&mut text, &long);
        let back: String = serde_json::from_slice(&text).unwrap();
        assert!(back.len() <= LONGEST + 3 && back.ends_with("ä…"), "{}", back.len());
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in "\\PC{0,40}|[\\x00-\\x7f]{0,40}") {
            let mut json = Vec::new();
            string(&mut json, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), text);
            prop_assert!(!json.contains(&b'\n'));
        }

        #[test]
        fn any_time_comes_back(second in -62_167_219_200_i64..253_402_207_200, nano in 0..1_000_000_000_i32) {
            let time = Timestamp::new(second, 0).unwrap() + jiff::SignedDuration::new(0, nano);
            let (mut fine, mut coarse) = (Vec::new(), Vec::new());
            micros(&mut fine, time);
            seconds(&mut coarse, Timestamp::new(second, 0).unwrap());
            let back: Timestamp = std::str::from_utf8(&fine).unwrap().parse().unwrap();
            prop_assert_eq!(back.as_nanosecond(), time.as_nanosecond().div_euclid(1000) * 1000);
            let back: Timestamp = std::str::from_utf8(&coarse).unwrap().parse().unwrap();
            prop_assert_eq!(back.as_second(), second);
        }

        #[test]
        fn any_number_comes_back(number: i64) {
            let mut text = Vec::new();
            signed(&mut text, number);
            prop_assert_eq!(String::from_utf8(text).unwrap(), number.to_string());
        }

        #[test]
        fn any_address_comes_back(v4: u32) {
            let v4 = std::net::Ipv4Addr::from_bits(v4);
            let mut text = Vec::new();
            address(&mut text, v4.into());
            prop_assert_eq!(String::from_utf8(text).unwrap(), v4.to_string());
        }
    }
}
