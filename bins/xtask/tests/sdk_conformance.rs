//! Every client in every situation: the table of `docs/compatibility.md`.

#![allow(clippy::print_stdout, reason = "the table is what the test is for")]

use anyhow::ensure;
use xtask::{
    kit::{self, page},
    setup::sdk,
};

#[test]
fn every_cell_passes_or_is_explained_by_a_limit_of_the_client() -> anyhow::Result<()> {
    let rows = kit::run(&sdk::ensure_all()?)?;
    for line in page::tables(&rows).iter().chain(&page::notes()) {
        println!("{line}");
    }
    let path = page::write(&page::page(&rows))?;
    println!("written to {}", path.display());
    let failures = page::failures(&rows);
    ensure!(failures.is_empty(), "{} cells failed:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}
