//! `operator`.

use znet_api::rest::{CreateOperator, Operator, OperatorRole};
use znet_cli::output::{self, Format};

use super::Result;
use super::args::OperatorCommand;
use super::ask::{Asker, failed};

const HEADINGS: [&str; 5] = ["OPERATOR", "ROLE", "NETWORK", "CREATED", "NOTE"];

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
