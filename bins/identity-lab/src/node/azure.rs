//! The emulators as a process of their own in Azure's network namespace, and how manifests reach them.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use super::{
    Error,
    accounts::ISSUER_HOST,
    clock::LabClock,
    network::{AZURE_ADDRESS, METADATA_ADDRESS},
    place::Place,
};
use crate::{
    emulator::{
        Config, Directory, EntraConfig, ImdsConfig,
        ca::{Authority, HOSTS},
        control,
    },
    files,
    seed::Overrides,
};

/// How long the emulators may take to answer.
const READY: Duration = Duration::from_secs(30);

/// Names of public services that resolve to the emulators, on the node and in pods. (A hosts file has no wildcards: names of
/// vaults are added as manifests name them.)
const NAMES: [&str; 8] = [
    "login.microsoftonline.com",
    "login.microsoftonline.us",
    "login.partner.microsoftonline.cn",
    "login.chinacloudapi.cn",
    "login.windows.net",
    "sts.windows.net",
    "management.azure.com",
    ISSUER_HOST,
];

/// Lines of a hosts file.
pub(super) fn hosts(overrides: &Overrides) -> String {
    line(NAMES.into_iter().chain(overrides.hosts.iter().map(String::as_str)))
}

/// One line of a hosts file.
pub(super) fn line<'a>(names: impl Iterator<Item = &'a str>) -> String {
    format!("{AZURE_ADDRESS} {}\n", names.collect::<Vec<_>>().join(" "))
}

/// Adds a line to a hosts file. In place and in one go: the file may be mounted over another, which shows what it is but not what
/// is renamed over it, and whoever reads it meanwhile finds all of the line or nothing.
pub(super) fn append(file: &Path, line: &str) -> io::Result<()> {
    OpenOptions::new().append(true).open(file)?.write_all(line.as_bytes())
}

/// Makes the authority and its certificates and writes the emulators' configuration.
pub(super) fn configure(place: &Place, overrides: &Overrides, clock: &LabClock) -> Result<(), Error> {
    let failed = |source: crate::emulator::ca::Error| Error::Authority(source.to_string());
    let authority = Authority::generate().map_err(failed)?;
    let vaults = overrides.vaults.iter().map(|vault| vault.host.as_str());
    let extra = NAMES.into_iter().chain(overrides.hosts.iter().map(String::as_str)).chain(vaults);
    let mut names: Vec<&str> = HOSTS.to_vec();
    names.extend(extra.filter(|name| !HOSTS.contains(name)));
    let server = authority.issue(&names).map_err(failed)?;
    files::write(&place.file("ca.crt"), authority.certificate_pem().as_bytes(), 0o644, place.root())?;
    files::write_secret(&place.file("azure.crt"), server.certificate_pem.as_bytes())?;
    files::write_secret(&place.file("azure.key"), server.key_pem.as_bytes())?;

    let path = |name: &str| place.file(name).display().to_string().into();
    let (tokens, metadata) = (&overrides.entra, &overrides.imds);
    let config = Config {
        entra: Some(EntraConfig {
            listen: SocketAddr::from((AZURE_ADDRESS, 443)),
            certificate: path("azure.crt"),
            key: path("azure.key"),
            token_lifetime_seconds: tokens.token_lifetime_seconds.unwrap_or(3599),
            refresh_in_seconds: tokens.refresh_in_seconds,
            latency_ms: tokens.latency_ms,
            retry_after_seconds: tokens.retry_after_seconds.unwrap_or(60),
            accept_replayed_assertions: tokens.accept_replayed_assertions,
        }),
        imds: Some(ImdsConfig {
            listen: SocketAddr::from((METADATA_ADDRESS, 80)),
            token_lifetime_seconds: metadata.token_lifetime_seconds.unwrap_or(86399),
            refresh_in_seconds: metadata.refresh_in_seconds,
            latency_ms: metadata.latency_ms,
            limits: metadata.limits.unwrap_or_default(),
            virtual_machine: metadata.virtual_machine.clone().unwrap_or_default(),
        }),
        key_vault: overrides.key_vault.clone(),
        directory: Directory::default(),
        clock: clock.file().map(Path::to_owned),
        faults: overrides.faults.clone(),
        control: Some(place.file("emulator.sock")),
        request_log: Some(place.file("requests.jsonl")),
    };
    Ok(files::write_secret(&place.file("emulator.json"), &serde_json::to_vec_pretty(&config)?)?)
}

/// Whether the emulators answer by now.
pub(super) async fn answers(place: &Place) -> bool {
    tokio::time::timeout(Duration::from_secs(2), control::faults(&place.file("emulator.sock")))
        .await
        .is_ok_and(|answer| answer.is_ok())
}

/// Tells the emulators what they must know.
pub(super) async fn tell(place: &Place, directory: &Directory) -> Result<(), String> {
    let socket = place.file("emulator.sock");
    match tokio::time::timeout(READY, control::set_directory(&socket, directory)).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the emulators do not answer".to_owned()),
    }
}
