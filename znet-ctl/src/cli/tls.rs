//! `tls`: the key by which the controllers are known, and how another takes its place.

use std::time::Duration;

use clap::Subcommand;
use znet_api::rest::{RotateTls, TlsKeys};
use znet_cli::output::{self, Format};

use super::ask::{Asker, failed};
use super::{Result, agree};

/// What can be done with the TLS key.
#[derive(Debug, Subcommand)]
pub enum TlsCommand {
    /// Show the keys by their pins
    #[command(after_help = "Examples:\n  znet-ctl tls show --output json")]
    Show,
    /// Make a new key and announce it; it is shown when all live nodes know it, and the present one to whoever asks for that
    #[command(after_help = "Examples:\n  znet-ctl tls rotate\n  znet-ctl tls rotate --keep 30d")]
    Rotate {
        /// Give the present key up so long after the new one is shown [default: keep it until `tls retire`]
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        keep: Option<Duration>,
    },
    /// Show the announced key now, whoever knows it
    #[command(after_help = "Examples:\n  znet-ctl tls promote")]
    Promote,
    /// Give up the keys that another has followed; whoever knows those alone is refused
    #[command(after_help = "Examples:\n  znet-ctl tls retire --yes")]
    Retire {
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

impl Asker {
    pub(super) async fn tls(&self, command: TlsCommand) -> Result {
        let client = &self.client;
        let keys = match command {
            TlsCommand::Show => client.tls().await,
            TlsCommand::Rotate { keep } => {
                client.rotate_tls(&RotateTls { keep_seconds: keep.map(|keep| keep.as_secs()) }).await
            }
            TlsCommand::Promote => client.promote_tls().await,
            TlsCommand::Retire { yes } => {
                agree(
                    yes,
                    "Refuses nodes, operators and tokens that know no other than the earlier TLS keys",
                )?;
                client.retire_tls().await
            }
        };
        let keys = keys.map_err(failed)?;
        output::print(self.format, &keys, &["PIN", "STATE"], rows(&keys));
        if self.format == Format::Table && keys.next.is_some() {
            output::line(
                "\nThe announced key is shown as soon as all live nodes know it; `znet-ctl tls show` tells.",
            );
        }
        Ok(())
    }
}

fn rows(keys: &TlsKeys) -> Vec<Vec<String>> {
    let mut rows = vec![vec![keys.current.clone(), "shown".to_owned()]];
    rows.extend(keys.next.iter().map(|pin| vec![pin.clone(), "announced".to_owned()]));
    rows.extend(keys.former.iter().map(|former| {
        let until = former.until.as_ref().map_or_else(|| "`tls retire`".to_owned(), Clone::clone);
        vec![former.pin.clone(), format!("kept until {until}")]
    }));
    rows
}
