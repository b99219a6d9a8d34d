//! `operator`.

use clap::{Subcommand, ValueEnum};
use znet_api::rest::{CreateOperator, Operator, OperatorRole};
use znet_cli::output::{self, Format};

use super::Result;
use super::ask::{Asker, failed};

const HEADINGS: [&str; 5] = ["OPERATOR", "ROLE", "NETWORK", "CREATED", "NOTE"];

/// What can be done with operators' tokens.
#[derive(Debug, Subcommand)]
pub enum OperatorCommand {
    /// Make an operator's token; its text is shown this once
    #[command(
        after_help = "Examples:\n  znet-ctl operator create --role deploy --network acme 'CI of acme'\n  znet-ctl operator create --role admin 'the team'"
    )]
    Create {
        /// For whom or what it is
        note: String,
        /// What it allows
        #[arg(long, value_enum)]
        role: RoleArg,
        /// The network in which it allows that [default: all]
        #[arg(long, value_name = "NETWORK")]
        network: Option<String>,
        /// Print the token's text and nothing else
        #[arg(long, short)]
        quiet: bool,
    },
    /// List operators' tokens
    #[command(after_help = "Examples:\n  znet-ctl operator list")]
    List,
    /// Make an operator's token invalid, at once
    #[command(after_help = "Examples:\n  znet-ctl operator revoke 0123456789abcdef")]
    Revoke {
        /// The operator's handle
        id: String,
    },
}

/// What an operator's token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// Look
    Read,
    /// And change what a deployment changes: tokens, containers, reservations
    Deploy,
    /// And everything else
    Admin,
}

impl From<RoleArg> for OperatorRole {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Read => Self::Read,
            RoleArg::Deploy => Self::Deploy,
            RoleArg::Admin => Self::Admin,
        }
    }
}

impl Asker {
    pub(super) async fn operator(&self, command: OperatorCommand) -> Result {
        match command {
            OperatorCommand::Create { note, role, network, quiet } => {
                let made = self
                    .client
                    .create_operator(&CreateOperator { note, role: role.into(), network })
                    .await
                    .map_err(failed)?;
                match self.format {
                    Format::Json => output::json(&made),
                    Format::Table if quiet => output::line(&made.operator_token),
                    Format::Table => {
                        output::table(&HEADINGS, [row(&made.operator)]);
                        output::line(
                            "\nThe token, which is shown only now, and the pin of this controller's key:\n",
                        );
                        output::line(&format!("  export ZNET_OPERATOR_TOKEN={}", made.operator_token));
                        output::line(&format!("  export ZNET_PIN={}", made.pin));
                    }
                }
            }
            OperatorCommand::List => {
                let all = self.client.operators().await.map_err(failed)?;
                output::print(self.format, &all, &HEADINGS, all.iter().map(row));
            }
            OperatorCommand::Revoke { id } => {
                self.client.revoke_operator(&id).await.map_err(failed)?;
                match self.format {
                    Format::Json => output::json(&serde_json::json!({ "revoked": id })),
                    Format::Table => {
                        output::line(&format!("the token of operator {id} is not accepted any more"));
                    }
                }
            }
        }
        Ok(())
    }
}

fn row(operator: &Operator) -> Vec<String> {
    let role = match operator.role {
        OperatorRole::Read => "read",
        OperatorRole::Deploy => "deploy",
        OperatorRole::Admin => "admin",
    };
    vec![
        operator.id.clone(),
        role.to_owned(),
        operator.network.clone().unwrap_or_else(|| "all".to_owned()),
        operator.created.clone(),
        operator.note.clone(),
    ]
}
