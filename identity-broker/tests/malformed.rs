//! Ten thousand malformed requests in a row, generated from a fixed seed: each is answered by a well-formed HTTP error or
//! has its connection closed, nothing panics, memory stays flat, and good requests in between are answered as before.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use identity_broker::{BrokerConfig, ServerConfig};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use support::{Client, bench::*, *};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const SEED: u64 = 0x1e57_0a11;
const REQUESTS: usize = 10_000;
/// What memory may grow by between the first thousand and the last, in bytes. The generator, the client and the broker
/// share the process; a leak of 1 kB a request would be 9 MiB.
const GROWTH: u64 = 4 * 1024 * 1024;

/// A request that is wrong in one way or another, and is never a good one by accident.
fn malformed(random: &mut StdRng) -> Vec<u8> {
    let good = token(QUERY);
    let paths = [
        "/metadata/identity/oauth2/token",
        "/metadata/identity/oauth2/token/",
        "//metadata/identity/oauth2/token",
        "/metadata\\identity/oauth2/token",
        "/metadata/identity/infos",
        "/oauth2/token",
        "/msi/token",
        "/metadata/instance/../identity/oauth2/token",
        "/%",
        "*",
        "http://169.254.169.254/metadata/identity/oauth2/token",
        "/host/token",
        "",
    ];
    // None of these makes a request for a token complete and right.
    let wrong_queries = [
        "",
        "resource=x",
        "api-version=2018-02-01",
        "api-version=2018-02-01&resource=x&resource=x",
        "api-version=2018-02-01&resource=x&client_id=",
        "api-version=2018-02-01&resource=%",
        "api-version=2018-02-01&resource=%ff",
        "api-version=1999-01-01&resource=x",
        "api-version=2018-02-01&resource=x&client_id=a&object_id=b",
        "api-version=2018-02-01&resource=x&bypass_cache=7",
        "api-version=2018-02-01&resource=x&authority=%00",
        "&&&===&&&",
    ];
    match random.random_range(0..12) {
        // Cut off, with a byte changed, with bytes put in: of a good request.
        0 => good.as_bytes()[..random.random_range(1..good.len())].to_vec(),
        1 => {
            let mut bytes = good.into_bytes();
            // The request line; a changed character of a value would be another good request.
            let at = random.random_range(0..3);
            bytes[at] = *b"\0 \t\x7f\xff{}\"".choose(random).unwrap();
            bytes
        }
        2 => {
            let mut bytes = good.into_bytes();
            let end = bytes.iter().position(|byte| *byte == b'\r').unwrap();
            bytes.insert(random.random_range(0..end), *b"\0\r\x01\x7f<>".choose(random).unwrap());
            bytes
        }
        3 => (0..random.random_range(1..2000)).map(|_| random.random()).collect(),
        4 => {
            let query = wrong_queries.choose(random).unwrap();
            let header =
                ["Metadata: true", "metadata:TRUE", "secret: s", "X-IDENTITY-HEADER: s"].choose(random).unwrap();
            let path = paths.choose(random).unwrap();
            // The form of old has no version to be wrong.
            let query = if *path == "/oauth2/token" { query.replace("=x", "=") } else { (*query).to_owned() };
            format!("GET {path}?{query} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n").into_bytes()
        }
        5 => {
            let verb = ["POST", "PUT", "HEAD", "TRACE", "CONNECT", "PATCH", "get", "G E T", ""].choose(random).unwrap();
            format!("{verb} {} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n", paths.choose(random).unwrap())
                .into_bytes()
        }
        6 => {
            let header = [
                "Metadata true",
                ": empty",
                "Metadata: tru\u{e9}",
                "Metadata: true\r\nMetadata: true",
                "X-Forwarded-For: 10.0.0.1\r\nMetadata: true",
                "Content-Length: x",
                "Content-Length: 5\r\nContent-Length: 6",
                "Transfer-Encoding: chunked\r\nContent-Length: 5",
                "Transfer-Encoding: nonsense",
                "Metadata:\r\n true",
            ]
            .choose(random)
            .unwrap();
            format!("GET {}?{QUERY} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n", paths[0]).into_bytes()
        }
        7 => {
            let version = ["HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "HTTP", "SPDY/3", ""].choose(random).unwrap();
            format!("GET {}?{QUERY} {version}\r\nMetadata: true\r\n\r\n", paths[0]).into_bytes()
        }
        8 => {
            let length = *[25_000, 30_000, 70_000].choose(random).unwrap();
            let long = "a".repeat(length);
            if random.random() {
                get(&format!("{}?{QUERY}&x={long}", paths[0])).into_bytes()
            } else {
                format!("GET {}?{QUERY} HTTP/1.1\r\nX: {long}\r\nMetadata: true\r\n\r\n", paths[0]).into_bytes()
            }
        }
        9 => {
            let body = wrong_queries.choose(random).unwrap().replace("api-version=2018-02-01&resource=x", "resource=");
            let length = body.len() + [0, 0, 3].choose(random).unwrap();
            format!(
                "POST /oauth2/token HTTP/1.1\r\nHost: x\r\nMetadata: true\r\nContent-Length: {length}\r\n\r\n{body}"
            )
            .replace("resource=x", "resource=")
            .into_bytes()
        }
        10 => {
            let chunk = ["zz\r\n", "5\r\nab\r\n0\r\n\r\n", "ffffffffffffffffff\r\n", "-1\r\n", "0\r\nX\r\n\r\n"]
                .choose(random)
                .unwrap();
            format!(
                "POST /oauth2/token HTTP/1.1\r\nHost: x\r\nMetadata: true\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"
            )
            .into_bytes()
        }
        _ => {
            let beginning: &[u8] = [
                &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"\r\n\r\n\r\n",
                b"SSH-2.0-OpenSSH\r\n",
                b"\0\0\0\0",
            ]
            .choose(random)
            .unwrap();
            beginning.to_vec()
        }
    }
}

/// Sends it, says that nothing more comes, reads all there is.
async fn exchange(address: std::net::SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(request).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("an end in time");
    answer
}

/// Every answer in there is a whole HTTP error; how many there are.
fn check(request: &[u8], bytes: &[u8]) -> usize {
    let start = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into_owned();
    let shown = || format!("{:?} -> {:?}", start(request), start(bytes));
    let (mut rest, mut count) = (bytes, 0);
    while !rest.is_empty() {
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or_else(|| panic!("{}", shown()));
        let head = std::str::from_utf8(&rest[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap();
        assert!(status.starts_with("HTTP/1.") && status.as_bytes()[8] == b' ', "{}", shown());
        let code: u16 = status[9..12].parse().unwrap();
        assert!((400..600).contains(&code) && code != 500, "{}", shown());
        let headers: Vec<_> =
            lines.map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{}", shown()))).collect();
        let of =
            |name: &str| headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| *value);
        let length: usize = of("content-length").unwrap_or_else(|| panic!("{}", shown())).parse().unwrap();
        rest = &rest[end + 4..];
        let is_head = request.starts_with(b"HEAD");
        if length > 0 && !is_head {
            let body: serde_json::Value =
                serde_json::from_slice(&rest[..length]).unwrap_or_else(|_| panic!("{}", shown()));
            assert!(body["error"].is_string() && body["error_description"].is_string(), "{}", shown());
            assert_eq!(of("content-type"), Some("application/json; charset=utf-8"), "{}", shown());
            rest = &rest[length..];
        }
        count += 1;
    }
    count
}

/// Anonymous memory of this process, in bytes.
fn memory() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let mut pages = statm.split_ascii_whitespace().skip(1).map(|n| n.parse::<u64>().unwrap());
    let (resident, shared) = (pages.next().unwrap(), pages.next().unwrap());
    (resident - shared) * 4096
}

#[tokio::test]
async fn ten_thousand_in_a_row() {
    // A panic in a task would only end its connection; here it is counted.
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        before(info);
    }));

    // With the limits of the defaults: whoever sends so many is slowed down a little, and nobody else.
    let config = BrokerConfig { body_timeout: Duration::from_millis(200), ..BrokerConfig::default() };
    let rules = Rules::new(allow("p", identity("i", KIND)));
    let bench = bench_with(Arc::clone(&rules), config, ServerConfig::default()).await;
    bench.upstream.gate.add_permits(10);
    let address = bench.server.address;
    let mut kept = Client::connect(address).await;
    let good = kept.exchange(&token(QUERY)).await;
    assert_eq!(good.status, 200);

    let mut random = StdRng::seed_from_u64(SEED);
    let (mut answered, mut closed, mut settled) = (0, 0, 0);
    for n in 0..REQUESTS {
        let request = malformed(&mut random);
        match check(&request, &exchange(address, &request).await) {
            0 => closed += 1,
            count => answered += count,
        }
        if n % 100 == 0 {
            // On a connection that was there before, and on a new one.
            assert_eq!(kept.exchange(&token(QUERY)).await.json(), good.json(), "after {n}");
            assert_eq!(bench.server.ask(&token(QUERY)).await.json(), good.json(), "after {n}");
        }
        if n == REQUESTS / 10 {
            settled = memory();
        }
    }
    let grown = memory().saturating_sub(settled);
    assert!(grown < GROWTH, "memory grew by {grown} bytes");
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 1, "none of them was a request for a token");
    // Most of them are HTTP enough to be answered.
    assert!(answered > REQUESTS / 2 && closed > 0, "{answered} answers, {closed} closed without");
    until("all connections are closed", || bench.server.metrics.connections.get() <= 1).await;
}
