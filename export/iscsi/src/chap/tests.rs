use super::*;
use crate::auth::{Password, Secret};

const SECRET: &str = "secret-of-12-bytes";
/// Proofs of [`SECRET`] with identifier and challenge all of c5h, by another implementation.
const PROOFS: [(u32, &str); 4] = [
    (5, "0xff2363ffbc010d8a7f030543e76f50c8"),
    (6, "0x045386d3f5870e23816583bc709bb6bfb7ff0972"),
    (7, "0x2802ea926e6c14dee0de7846c1a35ee2d98c19fadd67a47daddd66b46ff6a257"),
    (8, "0x43c2654f80da0149c1c3d48d49c78d7136e4d7f28df6422dec7a882e2ce5d8f4"),
];

fn policy(required: bool, mutual: bool) -> AuthPolicy {
    let secret = |user: &str| Secret {
        user: user.to_owned(),
        secret: Password::new(SECRET).unwrap(),
        mutual: Some(("tgt".to_owned(), Password::new("target-proves-it").unwrap())),
    };
    let secrets = vec![secret("ini"), secret("0xuser"), secret("0buser")].into();
    AuthPolicy { disabled: false, required, mutual, secrets }
}

fn request(chap: &mut Chap, keys: &[(&str, &str)]) -> Result<String, LoginStatus> {
    let pairs: Vec<Pair<'_>> = keys.iter().map(|(key, value)| Pair { key, value }).collect();
    let mut out = Vec::new();
    chap.request(&pairs, || Some([0xc5; CHALLENGE_LEN + 1]), &mut out)?;
    Ok(String::from_utf8(out).unwrap().replace('\0', " "))
}

/// A login up to the challenge.
fn challenged(policy: AuthPolicy, algorithms: &str) -> Chap {
    let mut chap = Chap::new(policy);
    assert_eq!(request(&mut chap, &[("AuthMethod", "CHAP,None")]).unwrap(), "AuthMethod=CHAP ");
    assert!(chap.is_under_way() && chap.leave().is_err());
    let said = request(&mut chap, &[("CHAP_A", algorithms)]).unwrap();
    assert!(said.contains(&format!("CHAP_I=197 CHAP_C=0x{} ", "c5".repeat(32))), "{said}");
    chap
}

#[test]
fn all_four_digests_prove_what_other_implementations_say() {
    for (number, proof) in PROOFS {
        let mut chap = challenged(policy(true, false), &format!("99,{number},5"));
        assert_eq!(request(&mut chap, &[("CHAP_N", "ini"), ("CHAP_R", proof)]), Ok(String::new()));
        assert_eq!((chap.leave(), chap.is_under_way()), (Ok(()), false));
    }
    // Base64, and names that look like numbers.
    for (user, proof) in
        [("0xuser", "0bKALqkm5sFN7g3nhGwaNe4tmMGfrdZ6R9rd1mtG/2olc="), ("0buser", PROOFS[2].1)]
    {
        let mut chap = challenged(policy(true, false), "7");
        assert_eq!(request(&mut chap, &[("CHAP_N", user), ("CHAP_R", proof)]), Ok(String::new()));
    }
}

#[test]
fn the_target_proves_itself_where_it_is_asked() {
    let asked = [
        ("CHAP_N", "ini"),
        ("CHAP_R", PROOFS[0].1),
        ("CHAP_I", "0x7"),
        ("CHAP_C", "0bAAECAwQFBgcICQoLDA0ODw=="),
    ];
    let mut chap = challenged(policy(true, true), "5");
    assert_eq!(request(&mut chap, &asked).unwrap(), "CHAP_N=tgt CHAP_R=0x235161ee22d5ec8baa71ad48561fd1df ");
    // Where it must be asked and is not.
    let mut chap = challenged(policy(true, true), "5");
    assert_eq!(request(&mut chap, &asked[..2]), Err(LoginStatus::AUTHENTICATION_FAILURE));
    // Half a question, and none that can be answered.
    let mut chap = challenged(policy(true, false), "5");
    assert_eq!(request(&mut chap, &asked[..3]), Err(LoginStatus::MISSING_PARAMETER));
    let mut one_way = policy(true, false);
    one_way.secrets =
        one_way.secrets.iter().map(|secret| Secret { mutual: None, ..secret.clone() }).collect();
    let mut chap = challenged(one_way, "5");
    assert_eq!(request(&mut chap, &asked), Err(LoginStatus::AUTHENTICATION_FAILURE));
}

#[test]
fn a_reflected_challenge_is_refused() {
    let ours = format!("0x{}", "C5".repeat(32));
    let mut chap = challenged(policy(true, false), "5");
    let keys = [("CHAP_N", "ini"), ("CHAP_R", PROOFS[0].1), ("CHAP_I", "197"), ("CHAP_C", ours.as_str())];
    assert_eq!(request(&mut chap, &keys), Err(LoginStatus::AUTHENTICATION_FAILURE));
}

#[test]
fn what_proves_nothing_is_refused_alike() {
    let failed = Err(LoginStatus::AUTHENTICATION_FAILURE);
    let wrong = PROOFS[0].1.replace('a', "b");
    for keys in [
        [("CHAP_N", "nobody"), ("CHAP_R", PROOFS[0].1)],
        [("CHAP_N", "ini"), ("CHAP_R", wrong.as_str())],
        [("CHAP_N", "ini"), ("CHAP_R", "0x")],
        [("CHAP_N", "ini"), ("CHAP_R", PROOFS[2].1)],
    ] {
        assert_eq!(request(&mut challenged(policy(true, false), "5"), &keys), failed, "{keys:?}");
    }
    let long = format!("0x{}", "00".repeat(1025));
    for bad in ["", "0", "12", "0xzz", "0b!!", long.as_str()] {
        let said = request(&mut challenged(policy(true, false), "5"), &[("CHAP_N", "ini"), ("CHAP_R", bad)]);
        assert_eq!(said, Err(LoginStatus::INITIATOR_ERROR), "{bad}");
    }
    let mut chap = Chap::new(policy(true, false));
    assert_eq!(request(&mut chap, &[("AuthMethod", "None")]), failed);
    assert_eq!(request(&mut Chap::new(policy(true, false)), &[("AuthMethod", "KRB5")]), failed);
    let mut chap = Chap::new(policy(true, false));
    request(&mut chap, &[("AuthMethod", "CHAP")]).unwrap();
    assert_eq!(request(&mut chap, &[("CHAP_A", "1,99")]), failed);
}

#[test]
fn keys_out_of_turn_are_refused() {
    let mut chap = Chap::new(policy(true, false));
    assert_eq!(
        request(&mut chap, &[("AuthMethod", "CHAP"), ("CHAP_A", "5")]),
        Err(LoginStatus::INITIATOR_ERROR)
    );
    assert_eq!(
        request(&mut Chap::new(policy(false, false)), &[("CHAP_N", "ini")]),
        Err(LoginStatus::INITIATOR_ERROR)
    );
    let mut chap = challenged(policy(true, false), "5");
    assert_eq!(request(&mut chap, &[("CHAP_A", "5")]), Err(LoginStatus::INITIATOR_ERROR));
}

#[test]
fn who_need_not_prove_anything_may_but_does_not_have_to() {
    let mut chap = Chap::new(policy(false, false));
    assert_eq!(chap.leave(), Ok(()));
    assert_eq!(request(&mut chap, &[("AuthMethod", "None,CHAP")]).unwrap(), "AuthMethod=None ");
    assert_eq!(Chap::new(policy(true, false)).leave(), Err(LoginStatus::AUTHENTICATION_FAILURE));
    let disabled = AuthPolicy { disabled: true, ..policy(false, false) };
    assert_eq!(
        request(&mut Chap::new(disabled), &[("AuthMethod", "CHAP,None")]).unwrap(),
        "AuthMethod=None "
    );
    assert!(!format!("{:?}", policy(true, true)).contains(SECRET), "a secret is shown");
}
