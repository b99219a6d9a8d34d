//! `network rotate-key`: another signing key for a network, and the end of those before.

use znet_api::rest::SigningKeys;
use znet_cli::output::{self, Format};

use super::ask::{Asker, failed};
use super::{Result, agree};

impl Asker {
    pub(super) async fn rotate_key(&self, network: &str, retire: bool, yes: bool) -> Result {
        let keys = if retire {
            let now = self.client.signing_keys(network).await.map_err(failed)?;
            if self.format == Format::Table {
                print_behind(&now);
            }
            agree(
                yes,
                &format!(
                    "Has nodes and tokens that believe an earlier key of network {network} need a new token"
                ),
            )?;
            self.client.retire_keys(network).await.map_err(failed)?
        } else {
            self.client.rotate_key(network).await.map_err(failed)?
        };
        output::print(self.format, &keys, &["KEY", "STATE"], rows(&keys));
        if self.format == Format::Table && !retire {
            print_behind(&keys);
            output::line(
                "\nNodes follow by themselves, those that are away when they are back. Make a backup now: one from before\nthis change is believed by nobody who has followed.",
            );
        }
        Ok(())
    }
}

fn rows(keys: &SigningKeys) -> Vec<Vec<String>> {
    let since =
        keys.since.map_or_else(|| "signs".to_owned(), |since| format!("signs from revision {since} on"));
    let mut rows = vec![vec![keys.current.clone(), since]];
    rows.extend(keys.former.iter().map(|key| vec![key.clone(), "leads to it".to_owned()]));
    rows
}

/// Names the nodes that would be lost if earlier keys were retired now.
fn print_behind(keys: &SigningKeys) {
    if !keys.not_followed.is_empty() {
        output::line(&format!(
            "\nnot known to have followed yet, as far as this controller has seen: {}",
            keys.not_followed.join(" ")
        ));
    }
}
