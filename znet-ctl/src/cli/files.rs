//! `backup` and `restore`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use znet_cli::exit::{Failure, Kind};
use znet_cli::output::{self, Format};

use super::Result;
use super::ask::{Asker, failed};
use crate::backup::{self, RestoreError};

impl Asker {
    pub(super) async fn backup(&self, file: &Path) -> Result {
        let bytes = self.client.backup().await.map_err(failed)?;
        if file == Path::new("-") {
            output::write_bytes(&bytes);
            return Ok(());
        }
        let failed = |error: std::io::Error| {
            let kind = match error.kind() {
                std::io::ErrorKind::AlreadyExists => Kind::Conflict,
                _ => Kind::Failure,
            };
            Failure::new(kind, "backup", format!("{}: {error}", file.display()))
        };
        let mut target =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(failed)?;
        let written = target.write_all(&bytes).and_then(|()| target.sync_all());
        if written.is_err() {
            // Half a backup is none.
            let _ = std::fs::remove_file(file);
        }
        written.map_err(failed)?;
        let row = vec![file.display().to_string(), bytes.len().to_string()];
        let value = serde_json::json!({ "file": file, "bytes": bytes.len() });
        output::print(self.format, &value, &["BACKUP", "BYTES"], [row]);
        if self.format == Format::Table {
            output::line("It holds the controller's keys: keep it as you keep the data directory.");
        }
        Ok(())
    }
}

/// Makes a data directory out of a backup.
pub(super) fn restore(file: &Path, data_dir: &Path, replace: bool, format: Format) -> Result {
    let restored = backup::restore(file, data_dir, replace).map_err(|error| {
        let kind = match &error {
            RestoreError::NotABackup { .. } | RestoreError::Damaged { .. } => Kind::Usage,
            RestoreError::NotEmpty { .. } | RestoreError::Keys(crate::keys::KeysError::InUse { .. }) => {
                Kind::Conflict
            }
            _ => Kind::Failure,
        };
        let failure = Failure::new(kind, "restore", &error);
        match &error {
            RestoreError::NotEmpty { .. } => failure.hint("--replace puts what is there aside"),
            _ => failure,
        }
    })?;
    let networks: Vec<_> = restored
        .networks
        .iter()
        .map(|(name, revision)| serde_json::json!({ "name": name, "revision": revision }))
        .collect();
    let value =
        serde_json::json!({ "data_dir": data_dir, "networks": networks, "replaced": restored.replaced });
    let rows = restored.networks.iter().map(|(name, revision)| vec![name.clone(), revision.to_string()]);
    output::print(format, &value, &["NETWORK", "REVISION"], rows);
    if format == Format::Table {
        output::line(&format!("restored into {}", data_dir.display()));
        if let Some(aside) = &restored.replaced {
            output::line(&format!("what was there is in {}", aside.display()));
        }
        output::line("Agents that have applied a later revision need `znet-ctl network new-epoch NETWORK`.");
    }
    Ok(())
}
