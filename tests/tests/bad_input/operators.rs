//! The operators' door. The OpenAPI document says what there is, so what is new is asked for as well.

use serde_json::{Value, json};
use znet_api::rest::OperatorRole;
use znet_tests::{Result, Served};

use crate::raw::{Request, exchange, send};

/// Bytes of memory that may be held more after everything was sent a second time.
const MEMORY: u64 = 16 << 20;
/// Largest body in bytes that the controller takes.
const MAX_BODY: usize = 1 << 20;

/// One operation of the document.
struct Operation {
    method: String,
    path: String,
    guarded: bool,
    /// The fields of its body with their schemas; `None` when it takes none.
    fields: Option<Vec<(String, Value)>>,
    required: Vec<String>,
    queries: Vec<String>,
}

impl Operation {
    fn of(document: &Value, path: &str, method: &str, described: &Value) -> Self {
        let body = &described["requestBody"]["content"]["application/json"]["schema"];
        let schema = resolve(document, body);
        let fields = schema["properties"].as_object();
        let parameters = described["parameters"].as_array().cloned().unwrap_or_default();
        let queries = parameters.iter().filter(|parameter| parameter["in"] == "query");
        Self {
            method: method.to_uppercase(),
            path: path.to_owned(),
            guarded: !described["security"].is_null(),
            fields: fields.map(|all| all.iter().map(|(name, of)| (name.clone(), of.clone())).collect()),
            required: schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|name| name.as_str().unwrap().to_owned())
                .collect(),
            queries: queries.map(|query| query["name"].as_str().unwrap().to_owned()).collect(),
        }
    }

    /// Its path, for a network and with every other part the same text.
    fn at(&self, network: &str, part: &str) -> String {
        let parts = self.path.split('/').map(|of| match of {
            "{network}" => network,
            of if of.starts_with('{') => part,
            of => of,
        });
        parts.collect::<Vec<_>>().join("/")
    }
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let pointer = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    pointer.map_or(schema, |pointer| document.pointer(pointer).unwrap())
}

async fn operations(served: &Served) -> Result<Vec<Operation>> {
    let asked = Request { method: "GET", path: b"/openapi.json", ..Request::default() };
    let document = asked.ask(served).await?.body;
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, described) in item.as_object().unwrap() {
            all.push(Operation::of(&document, path, method, described));
        }
    }
    // What removes most goes last.
    all.sort_by_key(|operation| (operation.method == "DELETE", std::cmp::Reverse(operation.path.len())));
    assert!(all.len() >= 28, "{} operations", all.len());
    Ok(all)
}

#[tokio::test]
async fn every_operation_refuses_who_has_no_token_for_it() -> Result {
    let mut served = Served::start()?;
    let elsewhere = Served::start()?;
    served.network("acme").await?;
    served.network("other").await?;
    let foreign = elsewhere.operator(OperatorRole::Admin, None).await?;
    let of_other = served.operator(OperatorRole::Admin, Some("other")).await?;
    let gone = serde_json::from_value(json!({ "note": "gone", "role": "admin" }))?;
    let revoked = served.client().create_operator(&gone).await?;
    served.client().revoke_operator(&revoked.operator.id).await?;
    let long = vec![b'x'; 8_000];
    let before = served.client().network("acme").await?;
    for operation in operations(&served).await?.iter().filter(|operation| operation.guarded) {
        let path = operation.at("acme", "x1");
        let body: &[u8] = if operation.fields.is_some() { b"{}" } else { b"" };
        let asked = Request { method: &operation.method, path: path.as_bytes(), body, token: None };
        let bad: [Option<&[u8]>; 7] = [
            None,
            Some(b""),
            Some(b"znop1.AAAA"),
            Some(b"\xff\xfe"),
            Some(&long),
            Some(foreign.as_bytes()),
            Some(revoked.operator_token.as_bytes()),
        ];
        for token in bad {
            let answer = Request { token, ..asked.clone() }.ask(&served).await?;
            assert_eq!((answer.status, answer.code()?), (401, "no_valid_token"), "{path}");
            assert_eq!(answer.header("www-authenticate"), "bearer", "{path}");
        }
        let answer = Request { token: Some(of_other.as_bytes()), ..asked }.ask(&served).await?;
        match (operation.path.contains("{network}"), answer.status) {
            // The body lacks what is needed, which is seen first.
            (_, 400) if !operation.required.is_empty() => assert_eq!(answer.code()?, "invalid_argument"),
            (true, status) => assert_eq!((status, answer.code()?), (404, "unknown_network"), "{path}"),
            (false, 200) => assert_eq!(answer.body.as_array().map(Vec::len), Some(1), "{path}"),
            (false, status) => assert_eq!((status, answer.code()?), (403, "not_permitted"), "{path}"),
        }
    }
    assert_eq!(served.client().network("acme").await?, before);
    served.is_unharmed().await
}

/// Values that are not of a field's type, whatever else may be wrong with them.
fn wrong_values(schema: &Value) -> Vec<Value> {
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    let may_be = |kind: &str| types.iter().any(|of| of == kind);
    let mut wrong = vec![json!({ "a": { "b": [] } }), json!([[[]]]), json!(1.5), json!(-1)];
    let text = "x".repeat(20_000);
    if !may_be("string") && schema["$ref"].is_null() && schema["oneOf"].is_null() {
        wrong.extend([json!("1"), json!(text)]);
    }
    if !may_be("boolean") {
        wrong.push(json!(true));
    }
    if !may_be("integer") {
        wrong.push(json!(1));
    }
    if !may_be("null") && schema["oneOf"].is_null() {
        wrong.push(Value::Null);
    }
    wrong
}

/// Bodies that are no objects that a request could be.
fn broken_bodies() -> Vec<Vec<u8>> {
    let deep = |open: &str, times: usize| open.repeat(times).into_bytes();
    let mut huge = b"{\"name\":\"".to_vec();
    huge.resize(MAX_BODY + 1, b'x');
    vec![
        b"{".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        b"\"text\"".to_vec(),
        b"{\"name\":\"\xff\xfe\"}".to_vec(),
        b"\xef\xbb\xbf{}".to_vec(),
        b"{\"name\":\"\\ud800\"}".to_vec(),
        b"{\"name\":1e999}".to_vec(),
        b"{}{}".to_vec(),
        b"\0\0\0".to_vec(),
        deep("[", 200_000),
        deep("{\"a\":", 100_000),
        huge,
    ]
}

/// Sends everything bad that there is to every operation.
async fn storm(served: &Served, token: &str) -> Result {
    for operation in operations(served).await? {
        let path = operation.at("acme", "x1");
        let asked = Request {
            method: &operation.method,
            path: path.as_bytes(),
            token: Some(token.as_bytes()),
            body: b"",
        };
        for part in ["%ff", "%00", "-", "UPPER", "..%2f..", &"x".repeat(5_000)] {
            let path = operation.at(part, part);
            if path == operation.path {
                continue;
            }
            let answer = Request { path: path.as_bytes(), ..asked.clone() }.ask(served).await?;
            assert!((400..500).contains(&answer.status), "{} {path}: {answer:?}", operation.method);
            answer.code()?;
        }
        for query in &operation.queries {
            for value in ["x", "-1", "1.5", "99999999999999999999999", "%ff", "1&after=1&limit=1"] {
                let path = format!("{path}?{query}={value}");
                let answer = Request { path: path.as_bytes(), ..asked.clone() }.ask(served).await?;
                assert_eq!((answer.status, answer.code()?), (400, "invalid_argument"), "{path}");
            }
        }
        let Some(fields) = &operation.fields else { continue };
        for (name, schema) in fields {
            for value in wrong_values(schema) {
                let mut body = json!({ &**name: value });
                for other in operation.required.iter().filter(|other| *other != name) {
                    body[other] = json!("read");
                }
                let body = body.to_string();
                let answer = Request { body: body.as_bytes(), ..asked.clone() }.ask(served).await?;
                let what = format!("{} {path} {:.200}: {answer:?}", operation.method, body);
                assert_eq!((answer.status, answer.code()?), (400, "invalid_argument"), "{what}");
            }
        }
        let unknown = Request { body: br#"{"no_such_field":1}"#, ..asked.clone() }.ask(served).await?;
        assert_eq!((unknown.status, unknown.code()?), (400, "invalid_argument"), "{path}");
        for body in broken_bodies() {
            let answer = Request { body: &body, ..asked.clone() }.ask(served).await?;
            let expected = if body.len() > MAX_BODY { (413, "too_large") } else { (400, "invalid_argument") };
            assert_eq!((answer.status, answer.code()?), expected, "{} {path}", operation.method);
        }
    }
    Ok(())
}

#[tokio::test]
async fn every_operation_says_what_is_wrong_with_a_request_and_keeps_nothing_of_it() -> Result {
    let mut served = Served::start()?;
    served.network("acme").await?;
    let token = served.operator(OperatorRole::Admin, None).await?;
    let before = served.client().networks().await?;
    storm(&served, &token).await?;
    let warm = served.memory()?;
    storm(&served, &token).await?;
    let after = served.memory()?;
    assert!(after < warm + MEMORY, "{warm} bytes after one storm, {after} after another");
    assert_eq!(served.client().networks().await?, before);
    served.is_unharmed().await
}

#[tokio::test]
async fn a_request_that_is_none_ends_its_connection_and_an_endless_body_is_cut_off() -> Result {
    let mut served = Served::start()?;
    let token = served.operator(OperatorRole::Admin, None).await?;
    for broken in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET /healthz\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /v1/networks HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/networks HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /v1/networks HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\xff\xff\xff\xff",
    ] {
        // Told or not: it must hang up, and say nothing but that the request is a bad one.
        let told = exchange(&served, None, broken).await.unwrap_or_default();
        let told = String::from_utf8_lossy(&told);
        let refused = told.is_empty() || told.starts_with("HTTP/1.1 4") || !told.starts_with("HTTP/1");
        assert!(refused, "{:?} was answered by {told}", String::from_utf8_lossy(broken));
    }
    let head = format!(
        "POST /v1/networks HTTP/1.1\r\nhost: znet\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
         transfer-encoding: chunked\r\n\r\n"
    );
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
    let endless = [head.into_bytes(), chunk.repeat(1_024)].concat();
    let before = served.memory()?;
    // The answer may be lost when the controller hangs up on what is still being sent.
    if let Ok(answer) = send(&served, &endless).await {
        assert_eq!((answer.status, answer.code()?), (413, "too_large"));
    }
    let after = served.memory()?;
    assert!(after < before + MEMORY, "{before} bytes before, {after} after");
    served.is_unharmed().await
}
