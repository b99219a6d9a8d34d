//! Errors in the words of the CNI specification: its codes, and our own from 100 on, which `docs/cni.md` lists.

use rscni_types::error::Error;
use znet_local::ClientError;

/// Refused by the agent, for a reason that none of the others says.
const REFUSED: u32 = 100;
/// The interface, or the attachment, is there already.
const EXISTS: u32 = 101;
/// The name or the address is taken in the network, or nothing is free there.
const TAKEN: u32 = 102;
/// `CNI_NETNS` belongs to another container.
const NETNS_IN_USE: u32 = 103;
/// CHECK found the container's network not as it should be.
const NOT_AS_IT_SHOULD_BE: u32 = 104;
/// GC could not take everything away.
const NOT_COLLECTED: u32 = 105;

fn own(code: u32, message: &str, detail: impl ToString) -> Error {
    Error::Custom(code, message.to_owned(), detail.to_string())
}

/// CHECK found something.
pub(crate) fn not_as_it_should_be(wrong: &[String]) -> Error {
    own(NOT_AS_IT_SHOULD_BE, "The container's network is not as it should be", wrong.join("; "))
}

/// GC left something.
pub(crate) fn not_collected(failed: &[String]) -> Error {
    own(NOT_COLLECTED, "Not everything could be taken away", failed.join("; "))
}

/// A network was not given.
pub(crate) fn no_network() -> Error {
    Error::InvalidNetworkConfig(
        "no network is given: set \"network\" in the configuration, ZNET_NETWORK in CNI_ARGS, or the label znet.network"
            .to_owned(),
    )
}

/// A variable of the environment.
pub(crate) fn variable(name: &str, why: &str) -> Error {
    Error::InvalidEnvValue(format!("{name}: {why}"))
}

/// What the agent said, or that it said nothing.
pub(crate) fn of_agent(error: &ClientError) -> Error {
    let refusal = match error {
        ClientError::Unreachable { .. } | ClientError::Lost(_) | ClientError::Timeout(_) => {
            return Error::TryAgainLater(error.to_string());
        }
        ClientError::Protocol(_) => return own(REFUSED, "The agent refused", error),
        ClientError::Refused(refusal) => refusal,
    };
    let detail = refusal.detail.clone();
    match refusal.code.as_str() {
        "netns_missing" | "unknown_owner" => Error::NotExist(detail),
        "host_namespace" | "not_a_namespace" => variable("CNI_NETNS", &detail),
        "invalid_ifname" => variable("CNI_IFNAME", &detail),
        "unknown_network" => Error::InvalidNetworkConfig(detail),
        "owned_already" | "ifname_taken" | "attached_elsewhere" => {
            own(EXISTS, "The interface or the attachment exists already", detail)
        }
        "netns_in_use" => own(NETNS_IN_USE, "CNI_NETNS belongs to another container", detail),
        _ => match refusal.status {
            429 | 503 | 504 => Error::TryAgainLater(detail),
            400 | 422 => Error::InvalidNetworkConfig(detail),
            409 | 507 => own(TAKEN, "The name or the address cannot be had", detail),
            _ => own(REFUSED, "The agent refused", detail),
        },
    }
}

#[cfg(test)]
mod tests {
    use znet_local::Refusal;

    use super::*;

    fn code(status: u16, code: &str) -> u32 {
        let (code, detail) = (code.to_owned(), "why".to_owned());
        u32::from(&of_agent(&ClientError::Refused(Refusal { status, code, detail })))
    }

    #[test]
    fn what_helps_a_runtime_to_decide_has_the_codes_of_the_specification() {
        assert_eq!(u32::from(&of_agent(&ClientError::Lost(String::new()))), 11);
        assert_eq!(code(503, "controller_away"), 11);
        assert_eq!(code(504, "not_applied"), 11);
        assert_eq!(code(404, "netns_missing"), 3);
        assert_eq!(code(422, "host_namespace"), 4);
        assert_eq!(code(404, "unknown_network"), 7);
        assert_eq!(code(422, "outside_prefix"), 7);
        assert_eq!(code(409, "owned_already"), EXISTS);
        assert_eq!(code(409, "name_taken"), TAKEN);
        assert_eq!(code(409, "netns_in_use"), NETNS_IN_USE);
        assert_eq!(code(500, "host"), REFUSED);
        assert_eq!(code(404, "unknown"), REFUSED);
    }
}
