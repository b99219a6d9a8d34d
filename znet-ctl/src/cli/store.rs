//! `store migrate`.

use std::path::PathBuf;

use clap::Subcommand;
use znet_cli::exit::{Failure, Kind};
use znet_cli::output::{self, Format};

use crate::keys::KeysError;
use crate::migrate::{MigrateError, Report, Side};

/// What can be done with stores.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Move everything from one store to another, keys included, and compare; no controller may be running on either
    #[command(
        after_help = "Examples:\n  znet-ctl store migrate --from sqlite:/var/lib/znet-ctl --to etcd:http://e1:2379,http://e2:2379\n  znet-ctl store migrate --from etcd:http://e1:2379 --to sqlite:/srv/znet --store-key /etc/znet/store.key\n\nThe source stays as it is: do not start a controller on it again."
    )]
    Migrate {
        /// Where everything is: sqlite:DATA_DIR or etcd:…
        #[arg(long, value_name = "STORE")]
        from: Side,
        /// Where everything goes, which must be empty
        #[arg(long, value_name = "STORE")]
        to: Side,
        /// The file that opens the keys in etcd; made if nothing is there yet
        #[arg(
            long,
            value_name = "FILE",
            default_value = "/var/lib/znet-ctl/store.key",
            env = "ZNET_CTL_STORE_KEY"
        )]
        store_key: PathBuf,
    },
}

/// Says what was moved.
pub(super) fn report(report: Report, to: &Side, format: Format) {
    let networks = report.networks.iter();
    let values: Vec<_> = networks
        .clone()
        .map(|network| {
            let head = network.head;
            let (digest, epoch) = (head.digest.to_string(), head.epoch.get());
            let (revision, rows) = (head.revision.get(), network.rows);
            serde_json::json!({ "name": network.name, "epoch": epoch, "revision": revision, "digest": digest, "rows": rows })
        })
        .collect();
    let value = serde_json::json!({
        "networks": values, "operators": report.operators, "audit": report.audit, "to": to.to_string(),
    });
    let rows = networks.map(|network| {
        let head = network.head;
        vec![
            network.name.clone(),
            head.revision.to_string(),
            network.rows.to_string(),
            head.digest.to_string(),
        ]
    });
    output::print(format, &value, &["NETWORK", "REVISION", "ROWS", "DIGEST"], rows);
    if format == Format::Table {
        let (operators, audit) = (report.operators, report.audit);
        output::line(&format!("{operators} operators and {audit} audit records as well; all was compared"));
        output::line("Do not start a controller on the old store again: agents believe the same keys.");
    }
}

impl From<MigrateError> for Failure {
    fn from(error: MigrateError) -> Self {
        let kind = match &error {
            MigrateError::NotEmpty { .. }
            | MigrateError::Changed { .. }
            | MigrateError::Keys(KeysError::InUse { .. }) => Kind::Conflict,
            MigrateError::Keys(KeysError::StoreKey { .. }) => Kind::Usage,
            _ => Kind::Failure,
        };
        Self::new(kind, "migrate", error)
    }
}
