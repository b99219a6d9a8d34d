//! Links inside a container's namespace: looking at them and changing them, over netlink.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use znet_core::plan::ObservedLink;

use super::netns::NetnsError;

/// Marks the routes that znet made, so that it removes no others.
const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(0x7a);
const EEXIST: i32 = -17;
const ENODEV: i32 = -19;
const ESRCH: i32 = -3;
const EADDRNOTAVAIL: i32 = -99;

pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetnsError {
    let what = what.into();
    move |source| NetnsError::Netlink { what, source }
}

pub(super) fn code(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code(),
        _ => 0,
    }
}

/// Treats errors that say «it is so already» as success.
fn already(result: Result<(), rtnetlink::Error>, codes: &[i32]) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if codes.contains(&code(&error)) => Ok(()),
        other => other,
    }
}

/// The index of the link of this name; `None` when there is none.
///
/// # Errors
/// [`NetnsError::Netlink`].
pub async fn index_of(handle: &Handle, name: &str) -> Result<Option<u32>, NetnsError> {
    Ok(get(handle, name).await?.map(|link| link.header.index))
}

pub(super) async fn get(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, NetnsError> {
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(link) => Ok(link),
        Err(error) if code(&error) == ENODEV => Ok(None),
        Err(error) => Err(failed(format!("looking for interface {name}"))(error)),
    }
}

async fn required(handle: &Handle, name: &str) -> Result<u32, NetnsError> {
    index_of(handle, name).await?.ok_or_else(|| NetnsError::NoLink { name: name.to_owned() })
}

/// Whether a link is of a kind that is made here: another one that bears the name of ours is somebody else's.
fn may_be_ours(link: &LinkMessage) -> bool {
    let infos = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.clone(),
        _ => Vec::new(),
    };
    let ours = |info| matches!(info, LinkInfo::Kind(InfoKind::Tun | InfoKind::Wireguard));
    link.attributes.iter().flat_map(infos).any(ours)
}

/// What the link of this name is like; `None` when there is none of ours.
///
/// # Errors
/// [`NetnsError::Netlink`].
pub async fn observe(handle: &Handle, name: &str) -> Result<Option<ObservedLink>, NetnsError> {
    let Some(link) = get(handle, name).await?.filter(may_be_ours) else { return Ok(None) };
    let index = link.header.index;
    let mtu =
        link.attributes.iter().find_map(|a| if let LinkAttribute::Mtu(mtu) = a { Some(*mtu) } else { None });
    let mut observed = ObservedLink {
        mtu: mtu.unwrap_or_default(),
        up: link.header.flags.contains(LinkFlags::Up),
        ..ObservedLink::default()
    };
    let what = || failed(format!("listing addresses of {name}"));
    let mut addresses = handle.address().get().set_link_index_filter(index).execute();
    while let Some(message) = addresses.try_next().await.map_err(what())? {
        observed.addresses.extend(address_of(&message).filter(|address| !is_link_local(address)));
    }
    observed.routes.extend(routed_into(handle, index).await?);
    Ok(Some(observed))
}

/// The prefixes that a plan routed into a link.
///
/// # Errors
/// [`NetnsError::Netlink`].
pub async fn routed_into(handle: &Handle, index: u32) -> Result<BTreeSet<IpNet>, NetnsError> {
    let mut found = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        let mut routes = handle.route().get(filter).execute();
        while let Some(message) = routes.try_next().await.map_err(failed("listing routes"))? {
            found.extend(route_of(&message, index));
        }
    }
    Ok(found)
}

/// The MTU of a link.
///
/// # Errors
/// [`NetnsError::Netlink`].
pub async fn mtu_of(handle: &Handle, index: u32) -> Result<u32, NetnsError> {
    let link = handle.link().get().match_index(index).execute().try_next().await;
    let link = link.map_err(failed(format!("looking for interface {index}")))?;
    let mtu = |a: &LinkAttribute| if let LinkAttribute::Mtu(mtu) = a { Some(*mtu) } else { None };
    Ok(link.and_then(|link| link.attributes.iter().find_map(mtu)).unwrap_or_default())
}

fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    // A peer address is what Address holds on a point-to-point link, so the local one is looked for first.
    let local = message
        .attributes
        .iter()
        .find_map(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
    local.or_else(|| {
        message
            .attributes
            .iter()
            .find_map(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None })
    })
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// The destination of a route of ours into the link.
fn route_of(message: &RouteMessage, index: u32) -> Option<IpNet> {
    Some(message)
        .filter(|message| message.header.protocol == ROUTE_PROTOCOL)
        .and_then(|m| route_into(m, index))
}

/// Whether a link is up and all these prefixes are routed into it, by whomever.
///
/// # Errors
/// [`NetnsError::Netlink`].
pub async fn is_complete(
    handle: &Handle,
    name: &str,
    mut prefixes: BTreeSet<IpNet>,
) -> Result<bool, NetnsError> {
    let Some(link) = get(handle, name).await?.filter(may_be_ours) else { return Ok(false) };
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        let mut routes = handle.route().get(filter).execute();
        let what = || failed(format!("listing routes of {name}"));
        while let Some(message) = routes.try_next().await.map_err(what())? {
            if let Some(prefix) = route_into(&message, link.header.index) {
                prefixes.remove(&prefix);
            }
        }
    }
    Ok(link.header.flags.contains(LinkFlags::Up) && prefixes.is_empty())
}

/// The destination of a route into the link.
fn route_into(message: &RouteMessage, index: u32) -> Option<IpNet> {
    if !message.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(oif) if *oif == index)) {
        return None;
    }
    let length = message.header.destination_prefix_length;
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(a)) => IpNet::new(IpAddr::V4(*a), length).ok(),
        RouteAttribute::Destination(RouteAddress::Inet6(a)) => IpNet::new(IpAddr::V6(*a), length).ok(),
        _ => None,
    })
}

/// Keeps the kernel from making up link-local addresses for a link: a container has the addresses that it was given.
/// Has to be said before the link is up; harmless where there is no IPv6.
///
/// # Errors
/// [`NetnsError::NoLink`].
pub async fn no_link_local(handle: &Handle, name: &str) -> Result<(), NetnsError> {
    let index = required(handle, name).await?;
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let message = LinkMessageBuilder::<LinkUnspec>::new()
        .index(index)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]))
        .build();
    if let Err(error) = handle.link().change(message).execute().await {
        tracing::debug!(name, %error, "the interface keeps its link-local address");
    }
    Ok(())
}

/// Sets MTU and up.
///
/// # Errors
/// [`NetnsError`].
pub async fn set_up(handle: &Handle, name: &str, mtu: Option<u32>, up: bool) -> Result<(), NetnsError> {
    let index = required(handle, name).await?;
    let mut message = LinkMessageBuilder::<LinkUnspec>::new().index(index);
    if let Some(mtu) = mtu {
        message = message.mtu(mtu);
    }
    if up {
        message = message.up();
    }
    handle
        .link()
        .change(message.build())
        .execute()
        .await
        .map_err(failed(format!("setting up interface {name}")))
}

/// Puts an address on a link, as a host address without duplicate address detection.
///
/// # Errors
/// [`NetnsError`].
pub async fn add_address(handle: &Handle, name: &str, address: IpAddr) -> Result<(), NetnsError> {
    let index = required(handle, name).await?;
    let length = if address.is_ipv4() { 32 } else { 128 };
    let mut request = handle.address().add(index, address, length).replace();
    // Nobody else can have the address, so there is nobody to ask; the container may use it at once.
    request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    already(request.execute().await, &[EEXIST]).map_err(failed(format!("adding address {address} to {name}")))
}

/// Takes an address off a link.
///
/// # Errors
/// [`NetnsError`].
pub async fn remove_address(handle: &Handle, name: &str, address: IpAddr) -> Result<(), NetnsError> {
    let index = required(handle, name).await?;
    let what = || failed(format!("removing address {address} from {name}"));
    let mut addresses =
        handle.address().get().set_link_index_filter(index).set_address_filter(address).execute();
    let found = addresses.try_next().await.map_err(what())?;
    match found {
        Some(message) => {
            already(handle.address().del(message).execute().await, &[EADDRNOTAVAIL]).map_err(what())
        }
        None => Ok(()),
    }
}

pub(super) fn route_message(index: u32, prefix: IpNet) -> RouteMessage {
    match prefix {
        IpNet::V4(net) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .output_interface(index)
            .protocol(ROUTE_PROTOCOL)
            .kind(RouteType::Unicast)
            .scope(netlink_packet_route::route::RouteScope::Link)
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .output_interface(index)
            .protocol(ROUTE_PROTOCOL)
            .kind(RouteType::Unicast)
            .build(),
    }
}

/// Routes a prefix into a link.
///
/// # Errors
/// [`NetnsError`].
pub async fn add_route(handle: &Handle, name: &str, prefix: IpNet) -> Result<(), NetnsError> {
    let index = required(handle, name).await?;
    let result = handle.route().add(route_message(index, prefix)).execute().await;
    already(result, &[EEXIST]).map_err(failed(format!("routing {prefix} into {name}")))
}

/// Routes a prefix into a link no longer.
///
/// # Errors
/// [`NetnsError`].
pub async fn remove_route(handle: &Handle, name: &str, prefix: IpNet) -> Result<(), NetnsError> {
    let index = required(handle, name).await?;
    let result = handle.route().del(route_message(index, prefix)).execute().await;
    already(result, &[ESRCH]).map_err(failed(format!("removing the route to {prefix} from {name}")))
}

/// The MTUs and addresses of the host's links that lead somewhere: up, not the loopback.
///
/// # Errors
/// [`NetnsError::Netlink`].
pub async fn underlay(handle: &Handle) -> Result<Vec<(IpAddr, u32)>, NetnsError> {
    let mut mtus = std::collections::BTreeMap::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(failed("listing the host's interfaces"))? {
        let flags = link.header.flags;
        if flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback) {
            let mtu = link
                .attributes
                .iter()
                .find_map(|a| if let LinkAttribute::Mtu(mtu) = a { Some(*mtu) } else { None });
            mtus.insert(link.header.index, mtu.unwrap_or(1_500));
        }
    }
    let mut found = BTreeSet::new();
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.map_err(failed("listing the host's addresses"))? {
        if let (Some(address), Some(mtu)) = (address_of(&message), mtus.get(&message.header.index))
            && !is_link_local(&address)
        {
            found.insert((address, *mtu));
        }
    }
    Ok(found.into_iter().collect())
}
