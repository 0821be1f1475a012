//! Clients in compiled languages: resolved by their own package tools, built once into the cache. What only the build needed
//! is removed from there.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::{
    files, paths,
    run::Cmd,
    setup::{self, kube, packages},
};

/// The program with azidentity and adal.
pub(super) fn go(source: &Path) -> anyhow::Result<PathBuf> {
    let go = kube::go()?;
    let texts = read(source, &["go.mod", "go.sum", "main.go"])?;
    let name = format!("go-sdk-{}", files::key(&texts.iter().map(String::as_str).collect::<Vec<_>>()));
    let what = "Go azidentity 1.15.0 and adal 0.9.24 with what they depend on";
    let directory = setup::cached(&name, what, |directory| {
        let build_cache = directory.join("go-build");
        Cmd::new(&go)
            .args(["build", "-trimpath", "-o"])
            .arg(directory.join("client"))
            .arg(".")
            .dir(source)
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-mod=readonly -buildvcs=false")
            .env("GOTOOLCHAIN", "local")
            .env("GOCACHE", &build_cache)
            .run_quietly()?;
        remove(&build_cache)
    })?;
    Ok(directory.join("client"))
}

/// A Java runtime, and the class path of the program with azure-identity and msal4j.
pub(super) fn java(source: &Path) -> anyhow::Result<(PathBuf, String)> {
    packages::ensure(packages::JAVA)?;
    let [pom, client] = read(source, &["pom.xml", "Client.java"])?;
    let compiler = Cmd::new("javac").arg("-version").text()?;
    let name = format!("java-sdk-{}", files::key(&[&pom, &client, compiler.trim()]));
    let what = "Java azure-identity 1.19.0 and msal4j 1.26.0 with what they depend on";
    let directory = setup::cached(&name, what, |directory| {
        files::replace(&directory.join("pom.xml"), &pom)?;
        files::replace(&directory.join("Client.java"), &client)?;
        let repository = directory.join("repository");
        Cmd::new("mvn")
            .args(["--quiet", "--batch-mode"])
            .arg(format!("-Dmaven.repo.local={}", repository.display()))
            .arg("org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies")
            .args(["-DoutputDirectory=jars", "-DincludeScope=runtime"])
            .dir(directory)
            .run_quietly()?;
        Cmd::new("javac").args(["-cp", "jars/*", "-d", "classes", "Client.java"]).dir(directory).run_quietly()?;
        remove(&repository)
    })?;
    let java = paths::find_program("java").context("there is a Java compiler but no `java`")?;
    Ok((java, format!("{0}/classes:{0}/jars/*", directory.display())))
}

/// The program with `azure_identity`: a workspace of its own, built with this project's Rust.
pub(super) fn rust(source: &Path) -> anyhow::Result<PathBuf> {
    packages::ensure(packages::BUILD)?;
    let [manifest, lock, client] = read(source, &["Cargo.toml", "Cargo.lock", "src/main.rs"])?;
    let toolchain = files::read(&paths::root().join("rust-toolchain.toml"))?;
    let name = format!("rust-sdk-{}", files::key(&[&manifest, &lock, &client, &toolchain]));
    let what = "Rust azure_identity 1.0.0 with what it depends on";
    let directory = setup::cached(&name, what, |directory| {
        let target = directory.join("target");
        Cmd::cargo()
            .args(["build", "--quiet", "--locked", "--manifest-path"])
            .arg(source.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .run_quietly()?;
        let client = directory.join("client");
        std::fs::rename(target.join("debug/sdk-rust"), &client)
            .with_context(|| format!("cargo left no {}", client.display()))?;
        remove(&target)
    })?;
    Ok(directory.join("client"))
}

fn read<const N: usize>(source: &Path, names: &[&str; N]) -> anyhow::Result<[String; N]> {
    let mut texts = std::array::from_fn(|_| String::new());
    for (text, name) in texts.iter_mut().zip(names) {
        *text = files::read(&source.join(name))?;
    }
    Ok(texts)
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    std::fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))
}
