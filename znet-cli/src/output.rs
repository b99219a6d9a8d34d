//! Tables for people, JSON for programs. A reader that goes away early (`| head`) ends the program quietly.

use std::io::Write as _;

use serde::Serialize;

/// The form of a command's result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Prints a value as JSON, or rows under headings as a table.
pub fn print<T: Serialize>(
    format: Format,
    value: &T,
    headings: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) {
    match format {
        Format::Json => json(value),
        Format::Table => table(headings, rows),
    }
}

/// Prints a value as JSON.
pub fn json<T: Serialize>(value: &T) {
    line(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Prints rows under headings, without borders.
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(headings);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().for_each(|text| line(text.trim_end()));
}

/// Prints a line.
pub fn line(text: &str) {
    write_bytes(format!("{text}\n").as_bytes());
}

/// Writes to standard output; when nobody reads it any more the program ends with success.
pub fn write_bytes(bytes: &[u8]) {
    if std::io::stdout().lock().write_all(bytes).is_err() {
        std::process::exit(0);
    }
}

/// How long ago an RFC 3339 time was, in words: `3m 2s ago`.
pub fn ago(text: &str) -> String {
    let Ok(then) = text.parse::<jiff::Timestamp>() else { return text.to_owned() };
    let seconds = u64::try_from(jiff::Timestamp::now().as_second() - then.as_second()).unwrap_or_default();
    format!("{} ago", humantime::format_duration(std::time::Duration::from_secs(seconds)))
}
