//! The client against faults: each has its class, and is tried again or not.

use std::time::Duration;

use patchwright_remote::http::{
    BearerToken, Call, FailureKind, HttpClient, HttpFailure, HttpOptions, RetryBudget, RetryPolicy,
    retried,
};
use serde_json::{Value, json};

use crate::server::{Reply, Server};

fn client(server: &Server) -> HttpClient {
    let options = HttpOptions {
        token: Some(BearerToken::new("s3cret")),
        timeout: Duration::from_secs(5),
        max_answer_bytes: 1000,
        ..HttpOptions::new(server.url())
    };
    HttpClient::new(options).unwrap()
}

fn ask(client: &HttpClient) -> Result<Value, HttpFailure> {
    client.post_json("/ask", &json!({"n": 1}), &Call::default())
}

#[test]
fn an_answer_comes_back_over_one_connection_with_the_token() {
    let server = Server::new(|request| Reply::Json(200, json!({"got": request.json()})));
    let client = client(&server);
    for _ in 0..3 {
        assert_eq!(ask(&client).unwrap(), json!({"got": {"n": 1}}));
    }
    let seen = server.seen();
    assert_eq!(seen.len(), 3);
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("POST", "/ask"));
    assert_eq!(seen[0].header("authorization"), Some("Bearer s3cret"));
    assert_eq!(seen[0].header("content-type"), Some("application/json"));
    let got: Value = client.get_json("/ask?x=1", &Call::default()).unwrap();
    assert_eq!(got, json!({"got": null}));
    assert_eq!(server.seen()[3].path, "/ask?x=1");
}

#[test]
fn every_fault_has_its_class() {
    let text = |status, header, body: &str| Reply::Text(status, header, body.to_owned());
    let cases = [
        (Reply::Drop, FailureKind::Dropped, "broke off"),
        (Reply::Half(json!({"a": "b".repeat(50)})), FailureKind::Dropped, "of the answer"),
        (Reply::Raw(b"\x16\x03\x01 what?\r\n\r\n"), FailureKind::Dropped, "broke off"),
        (
            text(429, Some(("retry-after", "3")), "slow down"),
            FailureKind::Busy { retry_after: Some(Duration::from_secs(3)) },
            "HTTP 429",
        ),
        (text(429, None, ""), FailureKind::Busy { retry_after: None }, "HTTP 429"),
        (
            text(503, Some(("retry-after", "1")), "loading"),
            FailureKind::Busy { retry_after: Some(Duration::from_secs(1)) },
            "loading",
        ),
        (text(500, None, "Internal Server Error"), FailureKind::Server(500), "Internal"),
        (
            Reply::Json(404, json!({"error": {"message": "no model m"}})),
            FailureKind::Refused(404),
            "no model m",
        ),
        (text(401, None, ""), FailureKind::Refused(401), "is the token right?"),
        (
            text(302, Some(("location", "http://127.0.0.1:1/")), ""),
            FailureKind::Refused(302),
            "302",
        ),
        (text(200, None, "<html>"), FailureKind::Garbage, "<html>"),
        (Reply::Json(200, json!("x".repeat(1000))), FailureKind::TooLarge, "longer than 1000"),
    ];
    for (reply, kind, text) in cases {
        let shown = format!("{reply:?}");
        let server = Server::replaying(vec![reply]);
        let failure = ask(&client(&server)).unwrap_err();
        assert_eq!(failure.kind, kind, "{shown}: {failure}");
        let said = failure.to_string();
        assert!(said.contains(text) && said.starts_with("POST http://127.0.0.1"), "{said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}

#[test]
fn nobody_there_and_nobody_answering() {
    let server = Server::replaying(vec![Reply::Drop]);
    let gone = client(&server);
    drop(server);
    assert_eq!(ask(&gone).unwrap_err().kind, FailureKind::Connect);

    let slow = Reply::Slow(Duration::from_secs(2), Box::new(Reply::Json(200, json!(1))));
    let server = Server::replaying(vec![slow]);
    let call = Call { timeout: Some(Duration::from_millis(50)), ..Call::default() };
    let failure = client(&server).get_json::<Value>("/", &call).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert!(failure.to_string().contains("within 0.05 s"), "{failure}");
}

#[test]
fn a_server_that_recovers_is_asked_until_it_answers() {
    let busy = Reply::Text(429, Some(("retry-after", "0")), String::new());
    let broken = Reply::Text(500, None, "oops".to_owned());
    let fine = Reply::Json(200, json!(7));
    let server = Server::replaying(vec![Reply::Drop, busy, broken, fine]);
    let client = client(&server);
    let policy = RetryPolicy { first_pause: Duration::from_millis(1), ..RetryPolicy::default() };
    let budget = RetryBudget::default();
    let got = retried(&policy, &budget, 5, &|| false, |_| ask(&client)).unwrap();
    assert_eq!((got, server.seen().len()), (json!(7), 4));
    assert!(budget.left() < 4096);
}
