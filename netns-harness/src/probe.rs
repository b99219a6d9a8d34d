//! Waiting for something to become true: never a sleep of a guessed length.

use std::time::{Duration, Instant};

use crate::error::{LabError, Result};

/// How often to look.
const EVERY: Duration = Duration::from_millis(5);

/// Asks again and again until there is an answer.
///
/// # Errors
/// [`LabError::Timeout`] that names what was waited for.
pub fn until<T>(what: &str, timeout: Duration, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if begun.elapsed() >= timeout {
            return Err(LabError::Timeout {
                what: what.to_owned(),
                waited: begun.elapsed(),
                last: String::new(),
            });
        }
        std::thread::sleep(EVERY);
    }
}

/// Asks again and again until the answer is `Ok`.
///
/// # Errors
/// [`LabError::Timeout`] that names what was waited for and the last error.
pub fn until_ok<T, E: std::fmt::Display>(
    what: &str,
    timeout: Duration,
    mut ask: impl FnMut() -> std::result::Result<T, E>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if begun.elapsed() >= timeout => {
                return Err(LabError::Timeout {
                    what: what.to_owned(),
                    waited: begun.elapsed(),
                    last: error.to_string(),
                });
            }
            Err(_) => std::thread::sleep(EVERY),
        }
    }
}
