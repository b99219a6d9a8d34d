//! The counts that are kept beside the source, and what may differ from them.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use crate::callgrind::Counts;

/// How much more a part may cost than is written, in hundredths: another compiler makes a few of them.
const MORE: f64 = 10.0;
/// So much less, in hundredths, is worth writing down.
const LESS: f64 = 10.0;
/// What stands at the beginning of the file.
const HEAD: &str = "\
# Instructions, and calls of the C library (mostly copies), for each packet or address.
# x86_64, release profile; without the cipher and the C library. `./x count update` writes this file.
";

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/hot_path/hot_path.counts")
}

/// Writes counts as those that are expected from now on.
pub(crate) fn write(counts: &[Counts]) {
    let mut text = HEAD.to_owned();
    for Counts { part, instructions, calls } in counts {
        writeln!(text, "{part} {instructions:.1} {calls:.2}").unwrap();
    }
    fs::write(path(), &text).unwrap();
    print!("{text}");
}

fn read() -> Vec<Counts> {
    let text = fs::read_to_string(path()).expect("there is a file of counts: ./x count update writes it");
    let counts = |line: &str| {
        let mut words = line.split(' ');
        let part = words.next().unwrap().to_owned();
        let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a line has two numbers");
        Counts { part, instructions: number(), calls: number() }
    };
    text.lines().filter(|line| !line.starts_with('#')).map(counts).collect()
}

/// Prints counts beside those that are expected; whether none is much larger.
pub(crate) fn compare(counts: &[Counts]) -> bool {
    let expected = read();
    let mut good = true;
    println!("{:<10} {:>14} {:>9} {:>9} {:>7}", "part", "for each", "expected", "counted", "change");
    for now in counts {
        let Some(then) = expected.iter().find(|then| then.part == now.part) else {
            println!("{:<10} is not expected at all", now.part);
            good = false;
            continue;
        };
        for (what, then, now_counted) in
            [("instructions", then.instructions, now.instructions), ("calls", then.calls, now.calls)]
        {
            let change = (now_counted - then) / then.max(0.01) * 100.0;
            println!("{:<10} {what:>14} {then:>9.1} {now_counted:>9.1} {change:>+6.1}%", now.part);
            if change > MORE {
                println!(
                    "  error: {} takes more {what} than it may ({MORE} % more than is written)",
                    now.part
                );
                good = false;
            } else if change < -LESS {
                println!("  better than is written: ./x count update keeps it so");
            }
        }
    }
    if !good {
        println!(
            "  hint: what became slower is what the counted functions in znet-wg/examples/hot_path call; if it is"
        );
        println!("  worth it, run ./x count update and commit the file with the reason");
    }
    good
}
