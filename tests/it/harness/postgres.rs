//! A private PostgreSQL for this test program: made in a folder that goes away, reached by a socket
//! in it, and ended with us, however we end.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use runbell::store::postgres::Settings;
use tokio_postgres::NoTls;

/// Ends when its input does, which is when we do, and takes everything along. `initdb` refuses to be
/// run by root.
const SCRIPT: &str = r#"
set -e
folder=$1 bin=$2
end() { "$bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1 || true; rm -rf "$folder"/*; }
trap end EXIT
"$bin/initdb" -D "$folder/data" -U runbell -A trust --no-sync -E UTF8 --locale=C >"$folder/log" 2>&1 \
  || { cat "$folder/log" >&2; exit 1; }
"$bin/pg_ctl" -D "$folder/data" -l "$folder/log" -w start >/dev/null \
  -o "-k '$folder' -c listen_addresses='$3' -c port=$4 -c fsync=$5 -c max_connections=300 -c shared_buffers=64MB" \
  || { cat "$folder/log" >&2; exit 1; }
echo ready
read -r _ || true
"#;

/// A server that runs for as long as this lives.
pub struct Server {
    _script: Child,
    pub folder: PathBuf,
    /// Where it listens: a folder with its socket, or the loopback.
    host: String,
    pub port: u16,
}

/// One for all tests, since each has a schema of its own.
static SERVER: LazyLock<Server> = LazyLock::new(|| Server::start(None, false));

static SCHEMAS: AtomicU32 = AtomicU32::new(0);

impl Server {
    /// Starts one, on a port of the loopback or on a socket only; `durable` where crashes count.
    pub fn start(port: Option<u16>, durable: bool) -> Self {
        let folder = super::store::folder().keep();
        let (uid, gid) = unprivileged();
        std::os::unix::fs::chown(&folder, Some(uid), Some(gid)).unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, "postgres"])
            .args([&folder, &programs()])
            .arg(if port.is_some() { "127.0.0.1" } else { "" })
            .arg(port.unwrap_or(5432).to_string())
            .arg(if durable { "on" } else { "off" })
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C at a terminal is for us; it ends when we do.
            .process_group(0);
        if rustix::process::geteuid().is_root() {
            command.uid(uid).gid(gid);
        }
        let mut script = command.spawn().unwrap();
        let mut said = String::new();
        let output = script.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut said).unwrap();
        assert_eq!(
            said, "ready\n",
            "PostgreSQL does not start; `make test` installs it"
        );
        let host = match port {
            Some(_) => "127.0.0.1".to_owned(),
            None => folder.to_str().unwrap().replace('/', "%2F"),
        };
        Self {
            _script: script,
            folder,
            host,
            port: port.unwrap_or(5432),
        }
    }

    /// The URL of a schema.
    pub fn url(&self, schema: &str) -> String {
        let Self { host, port, .. } = self;
        format!("postgres://runbell@{host}:{port}/postgres?options=-csearch_path%3D{schema}")
    }

    /// Makes a schema that nobody has used.
    pub async fn new_schema(&self) -> String {
        let number = SCHEMAS.fetch_add(1, Ordering::Relaxed);
        let schema = format!("test_{number}");
        self.run("public", &format!("CREATE SCHEMA {schema}")).await;
        schema
    }

    /// Runs statements beside the store.
    pub async fn run(&self, schema: &str, sql: &str) {
        self.query(schema, sql).await;
    }

    /// The first column of what a question answers, as text.
    pub async fn query(&self, schema: &str, sql: &str) -> Vec<String> {
        let (client, connection) = tokio_postgres::connect(&self.url(schema), NoTls)
            .await
            .unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(connection);
        let messages = client.simple_query(sql).await.unwrap();
        let rows = messages.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(ToOwned::to_owned),
            _ => None,
        });
        rows.collect()
    }

    /// On a port of the loopback, with files in the folder of its data.
    pub fn listening(files: &[(&str, &str)]) -> Self {
        let server = Self::start(Some(free_port()), false);
        let (uid, gid) = unprivileged();
        for (name, text) in files {
            let path = server.folder.join("data").join(name);
            std::fs::write(&path, text).unwrap();
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        server
    }

    /// Replaces the rules by which it lets anybody in.
    pub fn allow(&self, rules: &str) {
        std::fs::write(self.folder.join("data/pg_hba.conf"), rules).unwrap();
        let mut command = Command::new(programs().join("pg_ctl"));
        command
            .arg("-D")
            .arg(self.folder.join("data"))
            .arg("reload");
        self.run_as_owner(command);
    }

    fn run_as_owner(&self, mut command: Command) {
        command.current_dir(&self.folder).stdout(Stdio::null());
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = unprivileged();
            command.uid(uid).gid(gid);
        }
        assert!(command.status().unwrap().success(), "{command:?}");
    }

    /// Lets it crash, and starts it again.
    pub fn crash(&self) {
        let mut command = Command::new(programs().join("pg_ctl"));
        command
            .arg("-D")
            .arg(self.folder.join("data"))
            .arg("-l")
            .arg(self.folder.join("log"))
            .args(["-m", "immediate", "-w", "restart"]);
        self.run_as_owner(command);
    }

    pub fn settings(&self, schema: &str, replica: &str) -> Settings {
        Settings::parse(&self.url(schema), None, 8, replica.to_owned()).unwrap()
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The one that all tests share.
pub fn server() -> &'static Server {
    &SERVER
}

/// The folder of its programs, of the newest version there is.
pub fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let newest = versions
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok())
        .max();
    if let Some(newest) = newest {
        return format!("/usr/lib/postgresql/{newest}/bin").into();
    }
    let asked = Command::new("pg_config").arg("--bindir").output();
    let asked = asked.expect("PostgreSQL is not installed; `make test` does it");
    String::from_utf8(asked.stdout).unwrap().trim().into()
}

/// Who runs the server: us, or nobody in particular if we are root.
fn unprivileged() -> (u32, u32) {
    let us = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    if us.0 != 0 {
        return us;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let of = |name: &str| {
        let mut fields = users
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields[0] == name)?
            .into_iter();
        Some((fields.nth(2)?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    of("postgres").or_else(|| of("nobody")).unwrap()
}
