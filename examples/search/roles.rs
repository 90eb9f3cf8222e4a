//! The whole of it in one run, and each role alone: what the caller prints is an answer.

use std::net::TcpListener;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::sleep;

use crate::*;

/// What the caller prints of a folder of three documents, one of which has both words of the query.
fn is_an_answer(printed: &[u8]) {
    let printed = String::from_utf8_lossy(printed);
    let expected = [
        "2 hits for `bowline knot` in 3 documents",
        "both.txt",
        // Followed to its document, with the words in bold.
        "1: a \x1b[1mbowline\x1b[0m is a \x1b[1mknot\x1b[0m",
        "calls; latency: median ",
    ];
    for part in expected {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    // Three pushes, the query, and two links.
    assert!(printed.contains("\n6 calls; "), "{printed}");
    let (both, knot) = (printed.find("both.txt"), printed.find("knot.txt"));
    assert!(both < knot && knot.is_some(), "ranked: {printed}");
}

fn folder() -> Result<tempfile::TempDir, AnyError> {
    // What begins with a dot is left out.
    let folder = tempfile::Builder::new().prefix("search").tempdir()?;
    for (name, text) in [
        ("both.txt", "a bowline is a knot"),
        (
            "knot.txt",
            "another line, with a knot, and longer than the first",
        ),
        ("neither.txt", "nothing here"),
    ] {
        std::fs::write(folder.path().join(name), text)?;
    }
    Ok(folder)
}

#[tokio::test]
async fn four_services_in_one_run_answer_a_query() -> Result<(), AnyError> {
    let folder = folder()?;
    let path = folder.path().display().to_string();
    let mut printed = Vec::new();
    let arguments = Arguments::parse_from(["search", &path, "bowline knot"]);
    run(arguments, &mut printed).await?;
    is_an_answer(&printed);
    Ok(())
}

#[tokio::test]
async fn each_role_runs_alone_and_together_they_answer_a_query() -> Result<(), AnyError> {
    let folder = folder()?;
    let path = folder.path().display().to_string();
    let mut ports = Vec::new();
    for _ in 0..4 {
        ports.push(TcpListener::bind("127.0.0.1:0")?);
    }
    let addresses: Vec<String> = ports
        .iter()
        .map(|port| Ok(port.local_addr()?.to_string()))
        .collect::<Result<_, AnyError>>()?;
    drop(ports);
    let arguments = |role: &str| {
        let mut arguments = vec!["search".to_owned(), path.clone(), "bowline knot".to_owned()];
        arguments.extend(["--role".to_owned(), role.to_owned()]);
        let names = ["--login", "--index", "--search", "--progress"];
        for (name, address) in names.iter().zip(&addresses) {
            arguments.extend([(*name).to_owned(), format!("tcp://{address}")]);
        }
        Arguments::parse_from(arguments)
    };
    let local = LocalSet::new();
    for (role, address) in [("login", 0), ("index", 1), ("search", 2), ("worker", 2)] {
        let alone = arguments(role);
        local.spawn_local(async move {
            let ended = run(alone, &mut Vec::new()).await;
            panic!("{role} has ended: {ended:?}");
        });
        let (address, start) = (addresses[address].clone(), Instant::now());
        let is_there = async {
            while TcpStream::connect(&address).await.is_err() {
                assert!(start.elapsed() < Duration::from_secs(20), "no {role}");
                sleep(Duration::from_millis(10)).await;
            }
        };
        local.run_until(is_there).await;
    }
    let mut printed = Vec::new();
    let asks = run(arguments("caller"), &mut printed);
    local.run_until(asks).await?;
    is_an_answer(&printed);
    Ok(())
}
