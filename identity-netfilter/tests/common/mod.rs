//! A node, a pod and a metadata server, each in a network namespace of its own: what an un-redirected request of the pod
//! really reaches is a real server.
//!
//! ```text
//! pod 10.42.0.2 ── bridge 10.42.0.1 (node, forwards) 169.254.169.253 ── 169.254.169.254 (metadata)
//! ```
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]
#![allow(dead_code, reason = "each test binary uses its part")]

use std::ffi::OsString;
use std::fs::File;
use std::future::Future;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use identity_netfilter::{Backend, Netfilter, Redirect, Tools};

pub(crate) const NODE: &str = "10.42.0.1:2579";
pub(crate) const METADATA: &str = "169.254.169.254:80";
/// Long enough for a handshake within one machine under load, short enough to try what is dropped.
const CONNECT: Duration = Duration::from_millis(400);

/// The three namespaces; gone when dropped.
pub(crate) struct Lab {
    pub(crate) node: String,
    pub(crate) pod: String,
    pub(crate) metadata: String,
    /// Connections and datagrams that have arrived at the metadata server.
    pub(crate) reached: Arc<AtomicU64>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = |role: &str, number: u64| format!("epinf-{}-{number}-{role}", std::process::id());
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let lab = Self {
            node: name("node", number),
            pod: name("pod", number),
            metadata: name("meta", number),
            reached: Arc::default(),
        };
        for namespace in [&lab.node, &lab.pod, &lab.metadata] {
            must(&["ip", "netns", "add", namespace]);
            must(&["ip", "-n", namespace, "link", "set", "lo", "up"]);
        }
        let (node, pod, metadata) = (lab.node.as_str(), lab.pod.as_str(), lab.metadata.as_str());
        for command in [
            &["link", "add", "br0", "type", "bridge"][..],
            &["addr", "add", "10.42.0.1/24", "dev", "br0"],
            &["link", "set", "br0", "up"],
            &["link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", pod],
            &["link", "set", "pod0", "master", "br0", "up"],
            &["link", "add", "meta0", "type", "veth", "peer", "name", "eth0", "netns", metadata],
            &["addr", "add", "169.254.169.253/30", "dev", "meta0"],
            &["link", "set", "meta0", "up"],
        ] {
            must(&[&["ip", "-n", node], command].concat());
        }
        must(&["ip", "netns", "exec", node, "sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        for (namespace, address, gateway) in
            [(pod, "10.42.0.2/24", "10.42.0.1"), (metadata, "169.254.169.254/30", "169.254.169.253")]
        {
            must(&["ip", "-n", namespace, "addr", "add", address, "dev", "eth0"]);
            must(&["ip", "-n", namespace, "link", "set", "eth0", "up"]);
            must(&["ip", "-n", namespace, "route", "add", "default", "via", gateway]);
        }
        for port in [80, 8080] {
            serve(metadata, &format!("169.254.169.254:{port}"), "metadata", Arc::clone(&lab.reached));
        }
        let udp = inside(metadata, || UdpSocket::bind("169.254.169.254:53").unwrap());
        let reached = Arc::clone(&lab.reached);
        std::thread::spawn(move || {
            while udp.recv_from(&mut [0; 16]).is_ok() {
                reached.fetch_add(1, Ordering::SeqCst);
            }
        });
        lab
    }

    /// What runs programs on the node.
    pub(crate) fn tools(&self) -> Tools {
        Tools { prefix: ["ip", "netns", "exec", &self.node].map(OsString::from).to_vec(), ..Tools::default() }
    }

    pub(crate) async fn netfilter(&self, backend: Backend) -> Netfilter {
        let redirect = Redirect::new(METADATA.parse().unwrap(), NODE.parse().unwrap()).unwrap();
        Netfilter::new(redirect, backend, self.tools()).await.unwrap()
    }

    /// The broker's place on the node; says its name and the original destination, then repeats what it hears.
    pub(crate) fn listen(&self) -> Arc<AtomicU64> {
        let reached = Arc::default();
        serve(&self.node, NODE, "node", Arc::clone(&reached));
        reached
    }

    /// A connection of the pod and what the other side says first, or why there is none.
    pub(crate) fn connect(&self, to: &str) -> Result<(Talk, String), ErrorKind> {
        connect(&self.pod, to)
    }

    /// A datagram of the pod.
    pub(crate) fn datagram(&self, to: &str) {
        let to: SocketAddr = to.parse().unwrap();
        let sent = inside(&self.pod, || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"hello", to));
        assert_eq!(sent.unwrap(), 5);
    }

    pub(crate) fn reached(&self) -> u64 {
        self.reached.load(Ordering::SeqCst)
    }

    /// A command on the node that must succeed; its output.
    pub(crate) fn on_node(&self, command: &str) -> String {
        let words: Vec<&str> = ["ip", "netns", "exec", &self.node].into_iter().chain(command.split(' ')).collect();
        must(&words)
    }

    /// A command on the node that reads a text and must succeed.
    pub(crate) fn feed(&self, command: &str, input: &str) {
        let words: Vec<&str> = ["ip", "netns", "exec", &self.node].into_iter().chain(command.split(' ')).collect();
        let output = run(&words, Some(input));
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// All rules of the node, whoever made them, without counters.
    pub(crate) fn all_rules(&self) -> String {
        let text =
            ["iptables-legacy-save", "iptables-nft-save", "nft -s list ruleset"].map(|command| self.on_node(command));
        text.join("\n")
            .lines()
            .map(|line| line.split(" [").next().unwrap_or_default())
            .filter(|line| !line.starts_with('#'))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in [&self.pod, &self.metadata, &self.node] {
            run(&["ip", "netns", "del", namespace], None);
        }
    }
}

/// One line at a time with the other side.
pub(crate) struct Talk(BufReader<TcpStream>);

impl Talk {
    /// Says something; what comes back, or why nothing does.
    pub(crate) fn say(&mut self, line: &str) -> Result<String, ErrorKind> {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).map_err(|error| error.kind())?;
        let mut answer = String::new();
        match self.0.read_line(&mut answer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof),
            Ok(_) => Ok(answer.trim_end().to_owned()),
            Err(error) => Err(error.kind()),
        }
    }
}

/// Connects from within a namespace.
pub(crate) fn connect(namespace: &str, to: &str) -> Result<(Talk, String), ErrorKind> {
    let to: SocketAddr = to.parse().unwrap();
    let stream = inside(namespace, || TcpStream::connect_timeout(&to, CONNECT)).map_err(|error| error.kind())?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut talk = Talk(BufReader::new(stream));
    let mut greeting = String::new();
    talk.0.read_line(&mut greeting).map_err(|error| error.kind())?;
    Ok((talk, greeting.trim_end().to_owned()))
}

fn serve(namespace: &str, at: &str, name: &'static str, reached: Arc<AtomicU64>) {
    let listener = inside(namespace, || TcpListener::bind(at).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            reached.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let greeting = match socket2::SockRef::from(&stream).original_dst_v4() {
                    Ok(original) => format!("{name} for {}\n", original.as_socket().unwrap()),
                    Err(_) => format!("{name} for nobody else\n"),
                };
                let _ = stream.write_all(greeting.as_bytes());
                let mut heard = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                while heard.read_line(&mut line).is_ok_and(|count| count > 0) {
                    if stream.write_all(line.as_bytes()).is_err() {
                        break;
                    }
                    line.clear();
                }
            });
        }
    });
}

/// Does something in a network namespace; sockets made there stay there.
pub(crate) fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    std::thread::scope(|scope| {
        scope
            .spawn(move || {
                nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                work()
            })
            .join()
            .unwrap()
    })
}

/// A command that must succeed; its output.
pub(crate) fn must(command: &[&str]) -> String {
    let output = run(command, None);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "tests play the administrator")]
fn run(command: &[&str], input: Option<&str>) -> Output {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: these tests need root and the Debian packages iproute2, nftables, iptables, conntrack, procps, util-linux"));
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes()).unwrap();
    }
    child.wait_with_output().unwrap()
}

/// Tries again until something is as it should be, for at most ten seconds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn address(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

/// One test for each back end.
#[allow(unused_macros, reason = "not every test binary uses it")]
macro_rules! each_backend {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn nft() {
                super::$name(identity_netfilter::Backend::Nft).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn iptables_nft() {
                super::$name(identity_netfilter::Backend::IptablesNft).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn iptables_legacy() {
                super::$name(identity_netfilter::Backend::IptablesLegacy).await;
            }
        })*
    };
}
#[allow(unused_imports, reason = "not every test binary uses it")]
pub(crate) use each_backend;
