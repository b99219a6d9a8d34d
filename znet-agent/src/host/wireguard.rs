//! Links of the kernel's WireGuard: made in the host's namespace, where their UDP socket stays, marked as znet's, and moved
//! into a container's.

use std::os::fd::AsRawFd as _;

use defguard_wireguard_rs::{Kernel, WGApi, WireguardInterfaceApi as _};
use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteProtocol};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec};

use super::link::{self, code, failed};
use super::netns::{Netns, NetnsError, run_in_host};

/// Marks routes that lead single peers into a device while the network's prefix leads elsewhere; no plan looks at them.
const PEER_ROUTES: RouteProtocol = RouteProtocol::Other(0x7b);
const EEXIST: i32 = -17;
const ESRCH: i32 = -3;

/// A WireGuard link in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its index.
    pub index: u32,
    /// Its name, which a container may have changed.
    pub name: String,
}

/// Makes a link and moves it into a namespace. `temporary` is its name until it is there, `name` the one that it has there;
/// `mark` says whose it is. Returns its index there.
///
/// # Errors
/// [`NetnsError::NameTaken`] when either name belongs to a link that is not marked so; that link is left alone.
pub fn make(netns: &Netns, temporary: &str, name: &str, mark: &str) -> Result<u32, NetnsError> {
    let target = netns.file().as_raw_fd();
    run_in_host(|handle| async move {
        let index = create(&handle, temporary, mark).await?;
        let moved =
            LinkMessageBuilder::<LinkUnspec>::new().index(index).name(name).setns_by_fd(target).build();
        let moved = handle.link().change(moved).execute().await;
        if moved.is_err() {
            // It may have gone there without getting its name.
            let _ = handle.link().del(index).execute().await;
        }
        moved.map_err(|error| match code(&error) {
            EEXIST => NetnsError::NameTaken { name: name.to_owned() },
            _ => failed(format!("moving interface {temporary} into the namespace"))(error),
        })
    })
    .inspect_err(|_| drop(remove(netns, mark)))?;
    let found = find(netns, mark)?;
    found.map(|found| found.index).ok_or_else(|| NetnsError::NoLink { name: name.to_owned() })
}

/// Makes a link in the host's namespace, in place of one that an earlier attempt left.
async fn create(handle: &Handle, name: &str, mark: &str) -> Result<u32, NetnsError> {
    let taken = || NetnsError::NameTaken { name: name.to_owned() };
    if let Some(left) = link::get(handle, name).await? {
        // The mark is set after the link is made, so that one without any may be ours as well; no operator gives a link of
        // WireGuard's this name and no mark.
        if !is_wireguard(&left) || alias(&left).is_some_and(|alias| alias != mark) {
            return Err(taken());
        }
        let removed = handle.link().del(left.header.index).execute().await;
        removed.map_err(failed(format!("removing what is left of interface {name}")))?;
    }
    // It opens a socket of its own on this thread, which is in the host's namespace. That a link of this name is there
    // already it would take for success: what is there now is looked at.
    let made = WGApi::<Kernel>::new(name).and_then(|mut api| api.create_interface());
    made.map_err(|error| NetnsError::NoWireguard { why: error.to_string() })?;
    let link = link::get(handle, name).await?.filter(is_wireguard).ok_or_else(taken)?;
    let index = link.header.index;
    let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).down();
    let message = message.append_extra_attribute(LinkAttribute::IfAlias(mark.to_owned())).build();
    let marked = handle.link().change(message).execute().await;
    marked.map_err(failed(format!("marking interface {name}")))?;
    Ok(index)
}

/// Whether this kernel has WireGuard: found out by making a device, and removing it.
///
/// # Errors
/// [`NetnsError`]: why it has not.
pub fn check(name: &str) -> Result<(), NetnsError> {
    let mark = format!("znet check {}", std::process::id());
    run_in_host(|handle| async move {
        let index = create(&handle, name, &mark).await?;
        let removed = handle.link().del(index).execute().await;
        removed.map_err(failed(format!("removing interface {name}")))
    })
}

/// The link with this mark in a namespace.
///
/// # Errors
/// [`NetnsError`].
pub fn find(netns: &Netns, mark: &str) -> Result<Option<Found>, NetnsError> {
    netns.run(|handle| async move { find_by(&handle, mark).await })
}

async fn find_by(handle: &Handle, mark: &str) -> Result<Option<Found>, NetnsError> {
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(failed("listing interfaces"))? {
        if is_wireguard(&link) && alias(&link) == Some(mark) {
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            return Ok(Some(Found { index: link.header.index, name: name.unwrap_or_default() }));
        }
    }
    Ok(None)
}

/// Removes the link with this mark from a namespace; `false` when there is none.
///
/// # Errors
/// [`NetnsError`].
pub fn remove(netns: &Netns, mark: &str) -> Result<bool, NetnsError> {
    netns.run(|handle| async move {
        let Some(found) = find_by(&handle, mark).await? else { return Ok(false) };
        let removed = handle.link().del(found.index).execute().await;
        removed.map_err(failed(format!("removing interface {}", found.name)))?;
        Ok(true)
    })
}

/// Routes prefixes into a link beside what the plans say, with `source` as the address that packets get, or does so no
/// longer.
///
/// # Errors
/// [`NetnsError`].
pub async fn route_beside(
    handle: &Handle,
    index: u32,
    prefixes: &[IpNet],
    sources: &[std::net::IpAddr],
    add: bool,
) -> Result<(), NetnsError> {
    for prefix in prefixes {
        let mut message = link::route_message(index, *prefix);
        message.header.protocol = PEER_ROUTES;
        let source = sources.iter().find(|source| source.is_ipv4() == matches!(prefix, IpNet::V4(_)));
        message.attributes.extend(source.map(|source| RouteAttribute::PrefSource((*source).into())));
        let (result, already) = if add {
            (handle.route().add(message).execute().await, EEXIST)
        } else {
            (handle.route().del(message).execute().await, ESRCH)
        };
        match result {
            Err(error) if code(&error) != already => {
                return Err(failed(format!("routing {prefix}"))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_wireguard(link: &LinkMessage) -> bool {
    let kind = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Wireguard));
    link.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkInfo(all) if all.iter().any(kind)))
}

fn alias(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
        _ => None,
    })
}
