//! Whom to ask, and which command asks what.

use std::path::PathBuf;

use znet_api::client::{ClientError, ControllerClient, Target};
use znet_api::tls::Pin;
use znet_api::token::OperatorToken;
use znet_cli::exit::{Failure, Kind};
use znet_cli::output::Format;

use super::{Command, Result};

/// Where the controller is, as the flags say.
pub(super) struct Place {
    pub(super) socket: PathBuf,
    pub(super) controller: Option<String>,
    pub(super) pin: Option<Pin>,
    pub(super) token: Option<String>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) format: Format,
}

/// Asks a controller and prints what it says.
pub(super) struct Asker {
    pub(super) client: ControllerClient,
    pub(super) format: Format,
}

impl Asker {
    pub(super) fn new(place: Place) -> Result<Self> {
        znet_api::tls::install_provider();
        let format = place.format;
        Ok(Self { client: ControllerClient::new(target(place)?), format })
    }

    /// Says which key the controller shows now, where that is not the one that was pinned. On standard error, as nobody asked.
    pub(super) fn tell_newer_pin(&self) {
        if let Some(pin) = self.client.newer_pin() {
            eprintln!(
                "the controller has another TLS key now and will give up the one that --pin names: from now on\n  export ZNET_PIN={pin}"
            );
        }
    }

    pub(super) async fn ask(&self, command: Command) -> Result {
        match command {
            Command::Network(command) => self.network(command).await,
            Command::Controllers(command) => self.controllers(command).await,
            Command::Tls(command) => self.tls(command).await,
            Command::Token(command) => self.token(command).await,
            Command::Node(command) => self.node(command).await,
            Command::Container(command) => self.container(command).await,
            Command::Key(command) => self.key(command).await,
            Command::Reservation(command) => self.reservation(command).await,
            Command::Access(command) => self.access(command).await,
            Command::Operator(command) => self.operator(command).await,
            Command::Status { network, watch } => self.status(network.as_deref(), watch).await,
            Command::Gc { network, dry_run, yes } => self.gc(network, dry_run, yes).await,
            Command::Audit { network, after, limit, follow } => {
                self.audit(network.as_deref(), after, limit, follow).await
            }
            Command::Apply { file, dry_run } => self.apply(&file, dry_run).await,
            Command::Backup { file } => self.backup(&file).await,
            Command::Serve(_)
            | Command::Restore { .. }
            | Command::Store(_)
            | Command::Completions { .. }
            | Command::Man { .. } => {
                Err(Failure::new(Kind::Usage, "usage", "this command asks no controller"))
            }
        }
    }
}

fn target(place: Place) -> Result<Target> {
    let usage = |error: String, hint: &str| Failure::new(Kind::Usage, "usage", error).hint(hint);
    let Some(address) = place.controller else { return Ok(Target::Socket(place.socket)) };
    let pin = place.pin.ok_or_else(|| {
        usage(
            format!("the pin of the controller at {address} is missing"),
            "give it by --pin; `znet-ctl operator create` prints it",
        )
    })?;
    let text = match (place.token, place.token_file) {
        (Some(text), _) => text,
        (None, Some(path)) => std::fs::read_to_string(&path).map_err(|error| {
            usage(format!("{}: {error}", path.display()), "it holds what `znet-ctl operator create` printed")
        })?,
        (None, None) => {
            return Err(usage(
                format!("no operator's token was given for the controller at {address}"),
                "give it by --operator-token-file or ZNET_OPERATOR_TOKEN; `znet-ctl operator create` makes one",
            ));
        }
    };
    let token: OperatorToken =
        text.trim().parse().map_err(|error| Failure::new(Kind::Usage, "bad_token", format!("{error}")))?;
    Ok(Target::Remote { address, pin, token })
}

/// What a request that brought no answer comes to.
pub(super) fn failed(error: ClientError) -> Failure {
    match &error {
        ClientError::Problem(problem) => {
            // To an operator it makes no difference whether what is not there was named in the path or in the body.
            let missing = problem.status == 422 && problem.code.starts_with("unknown_");
            let kind = if missing { Kind::NotFound } else { Kind::of_status(problem.status) };
            Failure::new(kind, &problem.code, &problem.detail)
        }
        ClientError::Unreachable { .. } => {
            let hint = "is `znet-ctl serve` running, with the same --socket, and are you root? \
                        A controller elsewhere is named by --controller";
            Failure::new(Kind::Unreachable, "controller_unreachable", &error).hint(hint)
        }
        ClientError::PinMismatch(_) => Failure::new(Kind::NotPermitted, "pin_mismatch", &error),
        ClientError::Protocol(_) => Failure::new(Kind::Failure, "protocol", &error),
        ClientError::Timeout => Failure::new(Kind::TimedOut, "timed_out", &error),
    }
}
