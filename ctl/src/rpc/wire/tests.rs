use proptest::prelude::*;

use super::*;

fn frames(chunks: &[&[u8]]) -> Result<Vec<Vec<u8>>, RpcError> {
    let mut framer = Framer::default();
    let mut all = Vec::new();
    for chunk in chunks {
        framer.push(chunk);
        while let Some(frame) = framer.next_text()? {
            all.push(frame);
        }
    }
    Ok(all)
}

fn single(text: &str) -> Result<Request, (Value, RpcError)> {
    match parse(text.as_bytes()) {
        Ok(Message::Single(request)) => request,
        other => panic!("{other:?}"),
    }
}

#[test]
fn objects_that_follow_each_other_are_told_apart_however_they_are_cut() {
    let stream = br#"{"a":"}{\"]"}[{"b":[1]},{}]  {"c":{}}"#;
    let whole = frames(&[stream]).unwrap();
    assert_eq!(whole.len(), 3);
    assert_eq!(whole[0], br#"{"a":"}{\"]"}"#);
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(frames(&bytes).unwrap(), whole);
}

#[test]
fn what_begins_neither_an_object_nor_an_array_is_refused_with_the_character() {
    let error = frames(&[b"  GET / HTTP/1.1"]).unwrap_err();
    assert_eq!(error.code, -32700);
    assert!(error.message.contains("'G'"), "{error}");
}

#[test]
fn a_request_too_deep_or_too_long_is_refused_before_its_end_comes() {
    let deep = "[".repeat(DEPTH_MAX + 1);
    assert!(frames(&[deep.as_bytes()]).unwrap_err().message.contains("deep"));
    let long = format!("{{\"{}", "x".repeat(REQUEST_BYTES_MAX));
    assert!(frames(&[long.as_bytes()]).unwrap_err().message.contains("bytes"));
}

#[test]
fn a_request_names_its_bad_member_and_keeps_its_id() {
    for (text, word) in [
        (r#"{"id":7,"method":"m"}"#, "jsonrpc"),
        (r#"{"jsonrpc":"1.0","id":7,"method":"m"}"#, "\"1.0\""),
        (r#"{"jsonrpc":"2.0","id":7}"#, "method"),
        (r#"{"jsonrpc":"2.0","id":7,"method":3}"#, "a number"),
        (r#"{"jsonrpc":"2.0","id":7,"method":"m","params":[1]}"#, "an array"),
        (r#"{"jsonrpc":"2.0","id":7,"method":"m","parms":{}}"#, "\"parms\""),
    ] {
        let (id, error) = single(text).unwrap_err();
        assert_eq!((id, error.code), (json!(7), -32600), "{text}");
        assert!(error.message.contains(word), "{text}: {error}");
    }
    assert_eq!(single(r#"{"jsonrpc":"2.0","id":[7],"method":"m"}"#).unwrap_err().0, Value::Null);
}

#[test]
fn a_request_without_an_id_is_a_notification() {
    let request = single(r#"{"jsonrpc":"2.0","method":"m","params":null}"#).unwrap();
    assert_eq!(request, Request { id: None, method: "m".to_owned(), params: json!({}) });
}

#[test]
fn a_batch_keeps_its_order_and_its_bad_parts() {
    let text = br#"[{"jsonrpc":"2.0","id":1,"method":"a"}, 5, {"jsonrpc":"2.0","method":"b"}]"#;
    let Message::Batch(parts) = parse(text).unwrap() else { panic!("not a batch") };
    assert_eq!(parts[0].as_ref().unwrap().method, "a");
    assert_eq!(parts[1].as_ref().unwrap_err().1.code, -32600);
    assert_eq!(parts[2].as_ref().unwrap().id, None);
    assert_eq!(parse(b"[]").unwrap_err().code, -32600);
    let long = format!("[{}]", vec!["1"; BATCH_MAX + 1].join(","));
    assert!(parse(long.as_bytes()).unwrap_err().message.contains("1025"));
}

#[test]
fn an_unknown_method_gets_the_nearest_name() {
    let known = ["bdev_get_bdevs", "nvmf_get_stats"];
    let error = unknown_method("bdev_get_bdev", known.into_iter());
    assert!(error.message.contains("did you mean bdev_get_bdevs"), "{error}");
    assert!(!unknown_method("xyz", known.into_iter()).message.contains("did you mean"));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
        let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        if let Ok(frames) = frames(&chunks) {
            for frame in frames {
                drop(parse(&frame));
            }
        }
    }

    #[test]
    fn no_json_like_text_makes_the_reader_panic(text in r#"[\[\]{}",:0-9a-z\\ ."jsonrpcmethodid]{0,200}"#) {
        if let Ok(frames) = frames(&[text.as_bytes()]) {
            for frame in frames {
                drop(parse(&frame));
            }
        }
    }

    #[test]
    fn every_valid_request_comes_back_as_it_was(id in any::<u32>(), method in "[a-z_]{1,40}", key in "[a-z\"\\\\{}]{0,9}", value in any::<i64>()) {
        let text = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": {key.clone(): value}}).to_string();
        let framed = frames(&[text.as_bytes()]).unwrap();
        prop_assert_eq!(framed.len(), 1);
        let request = single(std::str::from_utf8(&framed[0]).unwrap()).unwrap();
        prop_assert_eq!(request, Request { id: Some(json!(id)), method, params: json!({key: value}) });
    }
}
