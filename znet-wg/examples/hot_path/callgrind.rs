//! Runs this program under callgrind and reads what it wrote (its manual, "Callgrind Format Specification").

use std::collections::HashMap;
use std::fs;
use std::process::{Command, Stdio};

use crate::PARTS;

/// What a part costs, for each packet or address.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Counts {
    pub(crate) part: String,
    pub(crate) instructions: f64,
    pub(crate) calls: f64,
}

/// Counts every part, in a run of its own.
pub(crate) fn count_all() -> Vec<Counts> {
    let directory = std::env::temp_dir().join(format!("hot_path-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let count = |(part, function, items): &(&str, &str, usize)| {
        let file = directory.join(part);
        let status = Command::new("valgrind")
            .args(["--quiet", "--tool=callgrind", "--collect-atstart=no"])
            .arg(format!("--toggle-collect={function}*"))
            .arg(format!("--callgrind-out-file={}", file.display()))
            .arg(std::env::current_exe().unwrap())
            .arg("work")
            .stderr(Stdio::inherit())
            .status()
            .expect("valgrind is installed: ./x count does that");
        assert!(status.success(), "the program runs under valgrind: {status}");
        let (instructions, calls) = sum(&fs::read_to_string(&file).unwrap());
        let each = |total: u64| total as f64 / *items as f64;
        Counts { part: (*part).to_owned(), instructions: each(instructions), calls: each(calls) }
    };
    let counts = PARTS.iter().map(count).collect();
    fs::remove_dir_all(&directory).unwrap();
    counts
}

/// Instructions of the functions that count, and their calls of the C library.
fn sum(written: &str) -> (u64, u64) {
    let (mut functions, mut objects) = (HashMap::new(), HashMap::new());
    let (mut instructions, mut calls) = (0, 0);
    let (mut counts, mut to_library, mut callee) = (false, false, false);
    for line in written.lines() {
        if let Some(function) = line.strip_prefix("fn=") {
            counts = ours(resolve(&mut functions, function));
        } else if let Some(function) = line.strip_prefix("cfn=") {
            resolve(&mut functions, function);
        } else if let Some(object) = line.strip_prefix("ob=") {
            resolve(&mut objects, object);
        } else if let Some(object) = line.strip_prefix("cob=") {
            to_library = resolve(&mut objects, object).contains("libc.so");
        } else if let Some(call) = line.strip_prefix("calls=") {
            let count: u64 = call.split(' ').next().unwrap().parse().unwrap();
            calls += if to_library && counts { count } else { 0 };
            // The next line tells what the callee took, which is not the caller's own; who says nothing calls within its
            // own object.
            (callee, to_library) = (true, false);
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            let own: u64 = line.split(' ').nth(1).map_or(0, |cost| cost.parse().unwrap());
            instructions += if counts && !callee { own } else { 0 };
            callee = false;
        }
    }
    (instructions, calls)
}

/// The name of `(7) name`, which `(7)` alone means from then on.
fn resolve<'t>(names: &mut HashMap<&'t str, &'t str>, text: &'t str) -> &'t str {
    match text.split_once(") ") {
        Some((number, name)) => {
            names.insert(number, name);
            name
        }
        None => names.get(text.trim_end_matches(')')).copied().unwrap_or_default(),
    }
}

fn ours(function: &str) -> bool {
    ["znet_wg::", "boringtun::", "hot_path::"].iter().any(|ours| function.contains(ours))
}
