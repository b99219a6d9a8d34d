//! `znet-agent cni`: the CNI plugin and its configuration in the places where container runtimes look. Files are replaced
//! whole, as a runtime may read them at any moment, and nothing is touched that is not ours.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};
use znet_cli::exit::{Failure, Kind};
use znet_cli::output::{self, Format};

use super::args::{CniCommand, CniInstallArgs, CniPlaceArgs};

/// The plugin's program, and what configurations call it.
const PLUGIN: &str = "znet-cni";
/// The version that runtimes of all ages read; those that know `cniVersions` take the newest of them.
const CNI_VERSION: &str = "1.0.0";

/// What became of a file.
#[derive(Debug, Serialize)]
struct Done {
    path: PathBuf,
    result: &'static str,
}

pub(super) fn cni(command: CniCommand, run_dir: &Path, format: Format) -> Result<(), Failure> {
    let done = match command {
        CniCommand::Install(args) => install(&args, run_dir)?,
        CniCommand::Uninstall(place) => uninstall(&place)?,
    };
    let row = |done: &Done| vec![done.path.display().to_string(), done.result.to_owned()];
    output::print(format, &done, &["FILE", "RESULT"], done.iter().map(row));
    Ok(())
}

fn install(args: &CniInstallArgs, run_dir: &Path) -> Result<Vec<Done>, Failure> {
    let conflist = conflist_path(&args.place)?;
    check_is_ours(&conflist)?;
    let source = match &args.plugin {
        Some(path) => path.clone(),
        None => std::env::current_exe().map_err(failed(Path::new("/proc/self/exe")))?.with_file_name(PLUGIN),
    };
    let program = fs::read(&source).map_err(|error| {
        failed(&source)(error).hint("the plugin is a program of its own; say where it is with --plugin")
    })?;
    let mut text = serde_json::to_vec_pretty(&conflist_of(args, run_dir))
        .map_err(|error| Failure::new(Kind::Failure, "json", error))?;
    text.push(b'\n');
    for dir in [&args.place.bin_dir, &args.place.conf_dir] {
        fs::create_dir_all(dir).map_err(failed(dir))?;
    }
    let plugin = args.place.bin_dir.join(PLUGIN);
    // The plugin first: a configuration without it would fail every container.
    Ok(vec![replace(plugin, &program, 0o755)?, replace(conflist, &text, 0o644)?])
}

fn conflist_of(args: &CniInstallArgs, run_dir: &Path) -> Value {
    let mut plugin = serde_json::Map::new();
    let capabilities = json!({"ips": true, "io.kubernetes.cri.pod-annotations": true});
    plugin.extend([("type".to_owned(), json!(PLUGIN)), ("capabilities".to_owned(), capabilities)]);
    plugin.extend(args.network.iter().map(|network| ("network".to_owned(), json!(network))));
    if run_dir != Path::new(znet_local::RUN_DIR) {
        plugin.insert("agentSocket".to_owned(), json!(run_dir.join(znet_local::SOCKET)));
    }
    json!({
        "cniVersion": CNI_VERSION,
        "cniVersions": ["0.4.0", CNI_VERSION, "1.1.0"],
        "name": args.place.name,
        "plugins": [plugin],
    })
}

fn uninstall(place: &CniPlaceArgs) -> Result<Vec<Done>, Failure> {
    let conflist = conflist_path(place)?;
    check_is_ours(&conflist)?;
    let mut done = vec![remove(conflist)?];
    let plugin = place.bin_dir.join(PLUGIN);
    let others = match fs::read_dir(&place.conf_dir) {
        Ok(entries) => entries.flatten().any(|entry| names_plugin(&entry.path())),
        Err(_) => false,
    };
    done.push(if others {
        Done { path: plugin, result: "kept, as others name it" }
    } else {
        remove(plugin)?
    });
    Ok(done)
}

/// The configuration's file. Its number has it come before those that distributions bring.
fn conflist_path(place: &CniPlaceArgs) -> Result<PathBuf, Failure> {
    let name = &place.name;
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')) {
        return Ok(place.conf_dir.join(format!("10-{name}.conflist")));
    }
    let why = format!("{name:?} is no name of a CNI network; use letters, digits, '_', '.' and '-'");
    Err(Failure::new(Kind::Usage, "invalid_name", why))
}

/// Whether a configuration names our plugin.
fn names_plugin(path: &Path) -> bool {
    let Ok(text) = fs::read(path) else { return false };
    let Ok(conf) = serde_json::from_slice::<Value>(&text) else { return false };
    let is_ours = |plugin: &Value| plugin.get("type").and_then(Value::as_str) == Some(PLUGIN);
    is_ours(&conf) || conf.get("plugins").and_then(Value::as_array).is_some_and(|all| all.iter().any(is_ours))
}

fn check_is_ours(conflist: &Path) -> Result<(), Failure> {
    if !conflist.exists() || names_plugin(conflist) {
        return Ok(());
    }
    let why = format!("{} is there already and is not of znet; it is left alone", conflist.display());
    Err(Failure::new(Kind::Conflict, "foreign_file", why).hint("choose another --name, or remove it"))
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let path = path.display().to_string();
    move |error| {
        let kind = match error.kind() {
            ErrorKind::PermissionDenied => Kind::NotPermitted,
            ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::Failure,
        };
        Failure::new(kind, "file", format!("{path}: {error}"))
    }
}

fn replace(path: PathBuf, bytes: &[u8], mode: u32) -> Result<Done, Failure> {
    if fs::read(&path).is_ok_and(|there| there == bytes) {
        return Ok(Done { path, result: "unchanged" });
    }
    // A name that no runtime takes for a configuration.
    let mut new = path.clone().into_os_string();
    new.push(".new");
    let new = PathBuf::from(new);
    let write = || {
        // One that was left half written is done anew, with the mode that it should have.
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&new);
        failed(&path)(error)
    })?;
    Ok(Done { path, result: "written" })
}

fn remove(path: PathBuf) -> Result<Done, Failure> {
    match fs::remove_file(&path) {
        Ok(()) => Ok(Done { path, result: "removed" }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Done { path, result: "was not there" }),
        Err(error) => Err(failed(&path)(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Places(tempfile::TempDir);

    impl Places {
        fn new() -> Self {
            let dir = tempfile::Builder::new().prefix("zt-cni-").tempdir().unwrap();
            fs::write(dir.path().join("znet-cni"), "the plugin").unwrap();
            Self(dir)
        }

        fn place(&self, name: &str) -> CniPlaceArgs {
            let dir = self.0.path();
            CniPlaceArgs { name: name.to_owned(), bin_dir: dir.join("bin"), conf_dir: dir.join("conf") }
        }

        fn install(&self, name: &str, network: &str) -> Result<Vec<&'static str>, Failure> {
            let (place, network) = (self.place(name), Some(network.to_owned()));
            let args = CniInstallArgs { place, network, plugin: Some(self.0.path().join("znet-cni")) };
            Ok(install(&args, Path::new(znet_local::RUN_DIR))?.iter().map(|done| done.result).collect())
        }

        fn uninstall(&self, name: &str) -> Result<Vec<&'static str>, Failure> {
            Ok(uninstall(&self.place(name))?.iter().map(|done| done.result).collect())
        }

        fn files(&self, dir: &str) -> Vec<String> {
            let entries = fs::read_dir(self.0.path().join(dir)).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    #[test]
    fn installing_and_uninstalling_can_be_repeated_and_leave_nothing_half_written() {
        let places = Places::new();
        assert_eq!(places.install("znet", "acme").unwrap(), ["written", "written"]);
        assert_eq!(places.install("znet", "acme").unwrap(), ["unchanged", "unchanged"]);
        assert_eq!(places.install("znet", "blue").unwrap(), ["unchanged", "written"]);
        assert_eq!(
            (places.files("bin"), places.files("conf")),
            (vec!["znet-cni".to_owned()], vec!["10-znet.conflist".to_owned()])
        );
        let conflist = fs::read(places.0.path().join("conf/10-znet.conflist")).unwrap();
        let conflist: Value = serde_json::from_slice(&conflist).unwrap();
        assert_eq!(conflist.pointer("/plugins/0/network"), Some(&json!("blue")));
        assert_eq!(conflist.pointer("/plugins/0/type"), Some(&json!("znet-cni")));
        assert_eq!(places.uninstall("znet").unwrap(), ["removed", "removed"]);
        assert_eq!(places.uninstall("znet").unwrap(), ["was not there", "was not there"]);
        assert!(places.files("bin").is_empty() && places.files("conf").is_empty());
    }

    #[test]
    fn the_plugin_stays_for_as_long_as_a_configuration_names_it_and_foreign_files_are_left_alone() {
        let places = Places::new();
        places.install("znet", "acme").unwrap();
        places.install("blue", "blue").unwrap();
        assert_eq!(places.uninstall("znet").unwrap(), ["removed", "kept, as others name it"]);
        let foreign = places.0.path().join("conf/10-theirs.conflist");
        fs::write(&foreign, r#"{"name": "theirs", "plugins": [{"type": "bridge"}]}"#).unwrap();
        assert_eq!(places.install("theirs", "acme").unwrap_err().kind, Kind::Conflict);
        assert_eq!(places.uninstall("theirs").unwrap_err().kind, Kind::Conflict);
        assert!(foreign.exists());
        assert_eq!(places.uninstall("blue").unwrap(), ["removed", "removed"]);
        assert_eq!(places.install("../x", "acme").unwrap_err().kind, Kind::Usage);
    }

    #[test]
    fn without_a_plugin_nothing_is_written() {
        let places = Places::new();
        fs::remove_file(places.0.path().join("znet-cni")).unwrap();
        assert_eq!(places.install("znet", "acme").unwrap_err().kind, Kind::NotFound);
        assert!(!places.0.path().join("conf").exists());
    }
}
