use aws_lc_rs::{
    cipher::{EncryptionContext, PaddedBlockEncryptingKey},
    iv::IV_LEN_128_BIT,
};

use super::*;

const SEQUENCE: u8 = 0x30;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
/// `[0]` with values in it, and `[0]` as another name of a string.
const EXPLICIT: u8 = 0xa0;
const IMPLICIT: u8 = 0x80;

const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const ENCRYPTED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x06];
const SHROUDED_KEY_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x02];
const PBE_SHA1_RC2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x01, 0x06];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];

fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut out = vec![tag];
    match u16::try_from(content.len()).unwrap() {
        short @ 0..0x80 => out.push(u8::try_from(short).unwrap()),
        long => {
            out.push(0x82);
            out.extend(long.to_be_bytes());
        }
    }
    out.extend(content);
    out
}

fn integer(value: u64) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(value.to_be_bytes());
    while bytes.len() > 1 && bytes[0] == 0 && bytes[1] < 0x80 {
        bytes.remove(0);
    }
    der(0x02, &[&bytes])
}

fn algorithm(oid: &[u8], parameters: &[u8]) -> Vec<u8> {
    der(SEQUENCE, &[&der(OID, &[oid]), parameters])
}

fn scheme(derivation: &[u8], iterations: u64) -> Vec<u8> {
    let hash = algorithm(&[HMAC, &[9]].concat(), &[0x05, 0x00]);
    let derivation =
        algorithm(derivation, &der(SEQUENCE, &[&der(OCTETS, &[b"saltsalt"]), &integer(iterations), &hash]));
    let cipher = algorithm(&[AES, &[42]].concat(), &der(OCTETS, &[&[7; 16]]));
    algorithm(PBES2, &der(SEQUENCE, &[&derivation, &cipher]))
}

fn key_bag(scheme: &[u8]) -> Vec<u8> {
    let key = der(SEQUENCE, &[scheme, &der(OCTETS, &[&[0x55; 32]])]);
    der(SEQUENCE, &[&der(OID, &[SHROUDED_KEY_BAG]), &der(EXPLICIT, &[&key])])
}

/// `SafeContents` as it is.
fn plain(bags: &[&[u8]]) -> Vec<u8> {
    der(SEQUENCE, &[&der(OID, &[DATA]), &der(EXPLICIT, &[&der(OCTETS, &[&der(SEQUENCE, bags)])])])
}

/// `SafeContents`, encrypted with password `pw`.
fn encrypted(iterations: u32, bags: &[&[u8]]) -> Vec<u8> {
    let mut key = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, NonZeroU32::new(iterations).unwrap(), b"saltsalt", b"pw", &mut key);
    let mut content = der(SEQUENCE, bags);
    let iv = FixedLength::<IV_LEN_128_BIT>::from([7; 16]);
    let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(UnboundCipherKey::new(&AES_256, &key).unwrap()).unwrap();
    let _iv = cipher.less_safe_encrypt(&mut content, EncryptionContext::Iv128(iv)).unwrap();
    let info = der(SEQUENCE, &[&der(OID, &[DATA]), &scheme(PBKDF2, iterations.into()), &der(IMPLICIT, &[&content])]);
    let data = der(SEQUENCE, &[&integer(0), &info]);
    der(SEQUENCE, &[&der(OID, &[ENCRYPTED_DATA]), &der(EXPLICIT, &[&data])])
}

fn archive(safes: &[&[u8]], mac_iterations: u64) -> Vec<u8> {
    let content = der(EXPLICIT, &[&der(OCTETS, &[&der(SEQUENCE, safes)])]);
    let digest = der(SEQUENCE, &[&algorithm(SHA256, &[0x05, 0x00]), &der(OCTETS, &[&[1; 32]])]);
    let mac = der(SEQUENCE, &[&digest, &der(OCTETS, &[b"saltsalt"]), &integer(mac_iterations)]);
    der(SEQUENCE, &[&integer(3), &der(SEQUENCE, &[&der(OID, &[DATA]), &content]), &mac])
}

#[test]
fn iterations_are_counted_wherever_they_are() {
    const HUGE: u64 = 1 << 31;
    let sane = key_bag(&scheme(PBKDF2, 2048));
    let pbe = algorithm(PBE_SHA1_RC2, &der(SEQUENCE, &[&der(OCTETS, &[b"saltsalt"]), &integer(HUGE)]));
    for (what, file, count) in [
        ("MAC", archive(&[], HUGE), HUGE),
        ("64 bits", archive(&[], u64::MAX), u64::MAX),
        ("PBES2 of a key", archive(&[&plain(&[&sane, &key_bag(&scheme(PBKDF2, HUGE))])], 1), HUGE + 2048),
        ("PKCS#12's own scheme", archive(&[&plain(&[&key_bag(&pbe)])], 1), HUGE),
        (
            "PBES2 of a key that is encrypted once more",
            archive(&[&encrypted(5, &[&key_bag(&scheme(PBKDF2, HUGE))])], 1),
            HUGE + 6,
        ),
        ("together", archive(&[&plain(&[&key_bag(&scheme(PBKDF2, 6_000_000))])], 4_000_001), 10_000_001),
        (
            "together, encrypted",
            archive(&[&encrypted(1, &[&sane]), &encrypted(1, &[&key_bag(&scheme(PBKDF2, 9_999_999))])], 1),
            2048 + 9_999_999 + 3,
        ),
    ] {
        assert_eq!(check(&file, "pw"), Err(Refusal::Iterations(count)), "{what}");
    }
    for file in [
        archive(&[&plain(&[&key_bag(&scheme(PBKDF2, 6_000_000))])], 4_000_000),
        archive(&[&plain(&[&sane]), &encrypted(2048, &[&sane])], 2048),
        // Negative is none, as for the reader; a negative number is no way to make room for another one.
        archive(&[&plain(&[&der(SEQUENCE, &[&der(OCTETS, &[b"x"]), &der(0x02, &[&[0xff, 0, 0, 0, 0]])])])], 1),
    ] {
        assert_eq!(check(&file, "pw"), Ok(()));
    }
}

#[test]
fn other_costs_are_bounded() {
    let sane = key_bag(&scheme(PBKDF2, 1));
    let many: Vec<&[u8]> = iter::repeat_n(&*sane, MAX_PARTS).collect();
    assert_eq!(check(&archive(&[&plain(&many)], 1), "pw"), Err(Refusal::Parts));
    assert_eq!(check(&archive(&[&plain(&many[1..])], 1), "pw"), Ok(()));
    assert_eq!(check(&archive(&[&encrypted(1, &many)], 1), "pw"), Err(Refusal::Parts));
    assert_eq!(check(&archive(&[&plain(&[&key_bag(&scheme(SCRYPT, 2))])], 1), "pw"), Err(Refusal::Scrypt));
    assert_eq!(check(&archive(&[&encrypted(1, &[&key_bag(&scheme(SCRYPT, 2))])], 1), "pw"), Err(Refusal::Scrypt));
    let deep = |levels| (0..levels).fold(der(SEQUENCE, &[]), |inner, _| der(SEQUENCE, &[&inner]));
    assert_eq!(check(&archive(&[&plain(&[&deep(10)])], 1), "pw"), Ok(()));
    assert_eq!(check(&archive(&[&plain(&[&deep(40)])], 1), "pw"), Err(Refusal::Depth));
    assert_eq!(check(&archive(&[&encrypted(1, &[])], 1), "other"), Err(Refusal::Password));
}

#[test]
fn the_walk_is_not_lost_in_what_is_no_archive() {
    let whole = archive(&[&plain(&[&key_bag(&scheme(PBKDF2, 1 << 31))])], 1);
    for length in 0..whole.len() {
        let _either = check(&whole[..length], "pw");
    }
    for file in [&[0x30, 0x80][..], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &[0xff; 64], &[0x24, 0x80].repeat(50_000)] {
        assert_eq!(check(file, "pw"), Ok(()));
    }
    // What is broken in one place does not hide another one.
    let broken = der(SEQUENCE, &[&der(OID, &[DATA]), &[0x30, 0x7f, 0x01]]);
    let file = archive(&[&broken, &plain(&[&key_bag(&scheme(PBKDF2, 1 << 31))])], 1);
    assert_eq!(check(&file, "pw"), Err(Refusal::Iterations(1 << 31)));
}

#[test]
fn circles() {
    for (names, expected) in [
        ("", false),
        ("a<a", false),
        ("leaf<ca ca<root root<root", false),
        ("leaf<ca", false),
        ("a<b b<a", true),
        ("leaf<a a<b b<c c<a", true),
        // Two certificates of one name; one of them leads back.
        ("leaf<ca ca<ca ca<leaf", true),
        ("leaf<ca ca<ca ca<root", false),
    ] {
        let issued: Vec<_> = names
            .split_whitespace()
            .filter_map(|pair| pair.split_once('<'))
            .map(|(of, by)| (of.into(), by.into()))
            .collect();
        assert_eq!(circular(&issued), expected, "{names}");
    }
}
