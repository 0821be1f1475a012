//! What the commands do.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, ExitCode, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use identity_lab::{
    emulator::{self, control, credentials},
    files,
    kube::ControlPlane,
    node::{
        self, cleanup,
        clock::LabClock,
        enter::{self, Enter},
        hold::{self, API_DOWN, API_DOWN_IN_FORCE, Options, Parts},
        place::Place,
        record::{PodRecord, ProcessRecord, Record},
    },
    process,
};
use jiff::SignedDuration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    azure::{self, Azure},
    cli::{Assets, Cli, Clock, Command, Exec, Kube, NewCredential, Style, Up},
};

/// The exit code of `exec` when there is nothing to execute in, as of `env`, `timeout` and `docker`.
const NOT_READY: u8 = 125;
/// How often a file or child is looked at.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) fn run(cli: Cli) -> ExitCode {
    let place = Place::new(&cli.directory.unwrap_or_else(default_directory));
    let result = match cli.command {
        Command::Up(up) if up.hold => hold_lab(&place, up),
        Command::Up(up) => up_detached(&place, &up),
        Command::Exec(exec) => return failed_exec(exec_in_pod(&place, &exec)),
        Command::Enter { netns, bind, env, command } => return failed_exec(enter(netns, &bind, &env, &command)),
        Command::Fault { switches } => fault(&place, &switches),
        Command::Azure(azure) => change_azure(&place, azure),
        Command::Clock { change } => clock(&place, change.as_ref()),
        Command::Credential(new) => credential(&new),
        Command::Status => return status(&place),
        Command::Down => down(&place, "lab"),
        Command::Kube(Kube::Up { assets }) => kube_up(&beside(&place), &assets),
        Command::Kube(Kube::Hold { assets }) => kube_hold(&beside(&place), &assets),
        Command::Kube(Kube::Down) => down(&beside(&place), "control plane"),
        Command::Emulate { config } => emulate(&config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Holds the lab in this process.
fn hold_lab(place: &Place, up: Up) -> anyhow::Result<()> {
    log_to_stderr();
    let manifests = match up.manifests {
        Some(path) => Some(fs::canonicalize(&path).with_context(|| format!("--manifests {}", path.display()))?),
        None => None,
    };
    let program = env::current_exe().context("where is this program?")?;
    let kube = if up.kube {
        let deploy = up.deploy.map_or_else(|| deploy_directory(&program), Ok)?;
        Some(Parts { assets: assets_directory(&up.assets)?, deploy })
    } else {
        None
    };
    if up.detached {
        // A closed terminal is no reason to end.
        let _ = nix::unistd::setsid();
    } else {
        cleanup::prepare(place)?;
    }
    let rootless = !nix::unistd::geteuid().is_root();
    if rootless && let Err(error) = enter::become_root() {
        let _ = cleanup::down(place);
        return Err(error.into());
    }
    let binaries = if up.no_binaries { None } else { program.parent().map(Path::to_owned) };
    let options = Options { place: place.clone(), manifests, kube, program, binaries, rootless, clock: up.clock };
    runtime()?.block_on(async {
        let shutdown = end_on_signals()?;
        let foreground = !up.detached;
        let ready = |record: &Record| {
            tracing::info!("the lab is ready");
            if foreground {
                say(&record.table(place));
            }
        };
        hold::hold(options, shutdown, ready).await.map_err(anyhow::Error::from)
    })
}

/// Starts a process that holds the lab, and waits until it is ready.
fn up_detached(place: &Place, up: &Up) -> anyhow::Result<()> {
    cleanup::prepare(place)?;
    let mut arguments: Vec<OsString> = ["up", "--hold", "--detached"].map(OsString::from).to_vec();
    let mut path = |flag: &str, value: &Option<PathBuf>| {
        if let Some(value) = value {
            arguments.extend([OsString::from(flag), value.into()]);
        }
    };
    path("--manifests", &up.manifests);
    path("--deploy", &up.deploy);
    path("--assets", &up.assets.assets);
    path("--clock", &up.clock.as_ref().map(PathBuf::from));
    arguments.extend(
        [(up.kube, "--kube"), (up.no_binaries, "--no-binaries")]
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, flag)| flag.into()),
    );
    let record = detach(place, &arguments, "lab")?;
    say(&record.table(place));
    Ok(())
}

/// Starts this program again as the process that holds `place`, and waits until that is ready.
fn detach(place: &Place, arguments: &[OsString], what: &str) -> anyhow::Result<Record> {
    let started = (|| {
        files::private_directory(&place.file("logs"))?;
        let log = File::create(place.log("lab"))?;
        // Stays readable when a lab that failed has removed its directory.
        let reader = File::open(place.log("lab"))?;
        let child = process::command(env::current_exe()?)
            .args(arguments)
            .env("IDENTITY_LAB_DIR", place.root())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok::<(Child, File), io::Error>((child, reader))
    })();
    let (mut child, mut log) =
        started.inspect_err(|_| drop(cleanup::down(place))).with_context(|| format!("cannot start the {what}"))?;
    loop {
        if let Some(record) = Record::read(place).filter(|record| record.ready && record.pid == child.id()) {
            return Ok(record);
        }
        if let Some(status) = child.try_wait()? {
            let mut text = String::new();
            let _ = log.read_to_string(&mut text);
            let _ = cleanup::down(place);
            bail!("the {what} did not come up ({status}):\n{}", text.trim_end());
        }
        // The process itself bounds each of its steps.
        thread::sleep(LOOK);
    }
}

fn exec_in_pod(place: &Place, exec: &Exec) -> (u8, String) {
    let Some((namespace, name)) = exec.pod.split_once('/') else {
        return (NOT_READY, format!("{:?} is not NAMESPACE/POD", exec.pod));
    };
    let (record, pod) = match find_pod(place, namespace, name) {
        Ok(found) => found,
        Err(why) => return (NOT_READY, why),
    };
    let file = |name: &str, over: &str| (pod.files.join(name), PathBuf::from(over));
    let inside = Enter {
        netns: record.netns_directory.join(&pod.netns),
        join: record.rootless.then_some(record.pid),
        binds: vec![file("hosts", "/etc/hosts"), file("resolv.conf", "/etc/resolv.conf")],
        service_account: Some(pod.files.join("serviceaccount")),
    };
    let header = uuid::Uuid::new_v4().to_string();
    let variables: &[(&str, &str)] = match exec.style {
        Style::Imds => &[],
        Style::AppService => &[("IDENTITY_ENDPOINT", "http://169.254.169.254/msi/token"), ("IDENTITY_HEADER", &header)],
        Style::CloudShell => &[("MSI_ENDPOINT", "http://169.254.169.254/oauth2/token")],
    };
    inside.exec(&exec.command, variables)
}

/// The pod, if the lab is ready and has it. A manifest that was written just now is on its way: it gets a second.
fn find_pod(place: &Place, namespace: &str, name: &str) -> Result<(Record, PodRecord), String> {
    for look in 0.. {
        let record = Record::read(place).ok_or_else(|| {
            format!("no lab is running in {}: start one with `identity-lab up`", place.root().display())
        })?;
        if !record.alive() {
            return Err("the lab was killed: `identity-lab down`, then `up`".to_owned());
        }
        if !record.ready {
            return Err("the lab is not ready yet".to_owned());
        }
        if let Some(pod) = record.pod(namespace, name).cloned() {
            return Ok((record, pod));
        }
        if look >= 50 {
            let known: Vec<String> = record.pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
            return Err(format!("there is no pod {namespace}/{name} on this node; there are: {}", known.join(" ")));
        }
        thread::sleep(LOOK);
    }
    Err(String::new())
}

fn enter(netns: PathBuf, binds: &[String], variables: &[String], command: &[OsString]) -> (u8, String) {
    let split = |bind: &String| bind.split_once('=').map(|(from, to)| (PathBuf::from(from), PathBuf::from(to)));
    let Some(binds) = binds.iter().map(split).collect() else {
        return (NOT_READY, "--bind needs FILE=REPLACED".to_owned());
    };
    let Some(variables) = variables.iter().map(|pair| pair.split_once('=')).collect::<Option<Vec<_>>>() else {
        return (NOT_READY, "--env needs NAME=VALUE".to_owned());
    };
    Enter { netns, binds, ..Enter::default() }.exec(command, &variables)
}

fn failed_exec((code, why): (u8, String)) -> ExitCode {
    complain(&why);
    ExitCode::from(code)
}

fn fault(place: &Place, switches: &[String]) -> anyhow::Result<()> {
    let record = running(place)?;
    let mut pairs = Vec::new();
    for pair in switches.chunks(2) {
        match pair {
            [name, state] if state == "on" => pairs.push((name, true)),
            [name, state] if state == "off" => pairs.push((name, false)),
            _ => bail!("{}: give pairs of a fault's name and on or off", pair.join(" ")),
        }
    }
    let socket = place.file("emulator.sock");
    let mut on = runtime()?.block_on(async {
        for (name, state) in pairs {
            if name == API_DOWN {
                let switch = place.file("faults").join(API_DOWN);
                if record.kubeconfig.is_none() {
                    bail!("{API_DOWN}: this lab has no API server; start it with --kube");
                }
                if state {
                    fs::write(&switch, "")?;
                } else if let Err(error) = fs::remove_file(&switch)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    return Err(error.into());
                }
                // The lab sees the file, cuts what is open, and says so.
                let sign = place.file(API_DOWN_IN_FORCE);
                let follows = async {
                    while sign.exists() != state {
                        tokio::time::sleep(LOOK).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(5), follows)
                    .await
                    .with_context(|| format!("{API_DOWN}: the lab did not follow within 5 s"))?;
            } else {
                control::set_fault(&socket, name, state)
                    .await
                    .map_err(|error| anyhow!("{error} (and, with --kube: {API_DOWN})"))?;
            }
        }
        Ok(control::faults(&socket).await?.iter().map(ToString::to_string).collect::<Vec<_>>())
    })?;
    if place.file("faults").join(API_DOWN).exists() {
        on.push(API_DOWN.to_owned());
    }
    say(&format!("on: {}\n", if on.is_empty() { "none".to_owned() } else { on.join(" ") }));
    Ok(())
}

fn running(place: &Place) -> anyhow::Result<Record> {
    Record::read(place).filter(Record::alive).ok_or_else(|| anyhow!("no lab is running in {}", place.root().display()))
}

fn change_azure(place: &Place, azure: Azure) -> anyhow::Result<()> {
    running(place)?;
    say(&runtime()?.block_on(azure::obey(place, azure))?);
    Ok(())
}

fn clock(place: &Place, change: Option<&Clock>) -> anyhow::Result<()> {
    let record = running(place)?;
    let file = record.clock.context("this lab goes by the machine's clock: start it with `up --clock`")?;
    let distance = match change {
        None => None,
        Some(Clock::Set { time }) => Some(node::clock::machine_distance(time).map_err(|why| anyhow!(why))?),
        Some(Clock::Offset { by }) => Some(*by),
        Some(Clock::Off) => Some(SignedDuration::ZERO),
    };
    if let Some(distance) = distance {
        node::clock::set(place, distance)?;
    }
    let clock = LabClock::of(&file);
    let far = clock.distance();
    let side = match far.signum() {
        0 => "as the machine's".to_owned(),
        side => format!("{:#} {} the machine's", far.abs(), if side > 0 { "ahead of" } else { "behind" }),
    };
    say(&format!("{} ({side})\n", clock.now()));
    Ok(())
}

fn credential(new: &NewCredential) -> anyhow::Result<()> {
    let pair = credentials::self_signed_rsa_between(&new.name, new.from, new.to)?;
    let bundle = credentials::pkcs12(&pair, &new.password)?;
    files::private_directory(&new.directory)?;
    let both = format!("{}{}", pair.key_pem, pair.certificate_pem);
    for (name, content) in [
        ("certificate.pem", pair.certificate_pem.as_bytes()),
        ("key.pem", pair.key_pem.as_bytes()),
        ("bundle.pem", both.as_bytes()),
        ("credential.p12", &bundle),
    ] {
        files::write_secret(&new.directory.join(name), content)?;
    }
    Ok(())
}

fn status(place: &Place) -> ExitCode {
    let Some(record) = Record::read(place) else {
        complain(&format!("no lab is running in {}", place.root().display()));
        return ExitCode::FAILURE;
    };
    say(&record.table(place));
    let complaints = record.complaints();
    for complaint in &complaints {
        complain(complaint);
    }
    if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn down(place: &Place, what: &str) -> anyhow::Result<()> {
    if !cleanup::down(place)? {
        complain(&format!("no {what} is running in {}", place.root().display()));
    }
    Ok(())
}

fn kube_up(place: &Place, assets: &Assets) -> anyhow::Result<()> {
    let assets = assets_directory(assets)?;
    cleanup::prepare(place)?;
    let arguments = ["kube".into(), "hold".into(), "--assets".into(), assets.into_os_string()];
    let record = detach_beside(place, &arguments)?;
    let path = record.kubeconfig.context("the control plane has no kubeconfig")?;
    say(&fs::read_to_string(&path)?);
    complain(&format!("kubeconfig: {}", path.display()));
    Ok(())
}

fn kube_hold(place: &Place, assets: &Assets) -> anyhow::Result<()> {
    log_to_stderr();
    let _ = nix::unistd::setsid();
    let assets = assets_directory(assets)?;
    let work = place.file("kube");
    runtime()?.block_on(async {
        let shutdown = end_on_signals()?;
        let control = tokio::select! {
            started = ControlPlane::start(&assets, &work) => started?,
            () = shutdown.cancelled() => return Ok(()),
        };
        let pid = std::process::id();
        let processes = control.processes().map(|process| ProcessRecord {
            name: process.name().to_owned(),
            pid: process.id(),
            started: process::started(process.id()).unwrap_or_default(),
            address: control.url(),
            log: process.log().to_owned(),
        });
        let record = Record {
            pid,
            started: process::started(pid).unwrap_or_default(),
            ready: true,
            kubeconfig: Some(control.kubeconfig()),
            processes: processes.collect(),
            ..Record::default()
        };
        record.write(place)?;
        shutdown.cancelled().await;
        control.stop().await;
        Ok::<(), anyhow::Error>(())
    })?;
    // Its data are of no use to anybody any more.
    fs::remove_dir_all(place.root())
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error.into()) })
}

fn emulate(config: &Path) -> anyhow::Result<()> {
    log_to_stderr();
    let text = fs::read(config).with_context(|| config.display().to_string())?;
    let config = serde_json::from_slice(&text).with_context(|| config.display().to_string())?;
    runtime()?.block_on(async {
        let shutdown = end_on_signals()?;
        let handle = emulator::run(config, shutdown.clone()).await?;
        shutdown.cancelled().await;
        handle.stopped().await;
        Ok(())
    })
}

/// The place of `identity-lab kube`, beside that of the lab.
fn beside(place: &Place) -> Place {
    let mut name = place.root().as_os_str().to_owned();
    name.push("-kube");
    Place::new(Path::new(&name))
}

fn detach_beside(place: &Place, arguments: &[OsString]) -> anyhow::Result<Record> {
    // The child works out the same place from the lab's own.
    let root = place.root().to_string_lossy().into_owned();
    let lab = root.strip_suffix("-kube").map(PathBuf::from).unwrap_or_default();
    let mut all: Vec<OsString> = vec!["--directory".into(), lab.into()];
    all.extend_from_slice(arguments);
    detach(place, &all, "control plane")
}

/// `deploy/` of the checkout: two levels above `target/debug`.
/// `deploy/` of the checkout: around this program (`target/debug`), or around the current directory when cargo builds elsewhere.
fn deploy_directory(program: &Path) -> anyhow::Result<PathBuf> {
    let here = env::current_dir().unwrap_or_default();
    program
        .ancestors()
        .chain(here.ancestors())
        .map(|directory| directory.join("deploy"))
        .find(|deploy| deploy.join("crds").is_dir())
        .context("no deploy directory around this program or the current directory: name it with --deploy")
}

fn assets_directory(assets: &Assets) -> anyhow::Result<PathBuf> {
    if let Some(directory) = &assets.assets {
        return std::path::absolute(directory).context("KUBEBUILDER_ASSETS");
    }
    let cache = variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")))
        .unwrap_or_default()
        .join("entra-pod-identity");
    let entries = fs::read_dir(&cache).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut built: Vec<PathBuf> = entries.filter(|path| path.join("kube-apiserver").is_file()).collect();
    built.sort();
    built.pop().with_context(|| {
        format!(
            "no kube-apiserver below {}: `cargo xtask test kube` builds it, or set KUBEBUILDER_ASSETS",
            cache.display()
        )
    })
}

fn default_directory() -> PathBuf {
    let runtime = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
    Place::default_directory(nix::unistd::geteuid().as_raw(), runtime.as_deref())
}

#[expect(clippy::disallowed_methods, reason = "a program finds its user's directories in the environment")]
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| value != OsStr::new(""))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// A token that is cancelled by the signals that mean "end".
fn end_on_signals() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let (token, mut signals) = (token.clone(), signal(kind)?);
        tokio::spawn(async move {
            signals.recv().await;
            token.cancel();
        });
    }
    Ok(token)
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
}

fn say(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "identity-lab: {text}");
}
