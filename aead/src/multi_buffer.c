/*
 * One packet by Intel's library. Its manager is a table of functions whose layout is known to its header alone,
 * which is why this is C: nothing else belongs here.
 */
#include <intel-ipsec-mb.h>
#include <stddef.h>
#include <stdint.h>

/* A manager, or NULL if there is no memory, the library fails its own tests, or the processor has nothing that makes it worth it. */
IMB_MGR *znet_mb_new(void)
{
    const uint64_t worth = IMB_FEATURE_AVX512_SKX | IMB_FEATURE_AVX512_IFMA;
    IMB_MGR *manager = alloc_mb_mgr(0);

    if (manager == NULL)
        return NULL;
    init_mb_mgr_auto(manager, NULL);
    if (imb_get_errno(manager) != 0 || (manager->features & worth) != worth) {
        free_mb_mgr(manager);
        return NULL;
    }
    return manager;
}

void znet_mb_free(IMB_MGR *manager)
{
    free_mb_mgr(manager);
}

/* Seals or opens `length` bytes in place and writes the tag that belongs to them. Returns whether it did; does not compare tags. */
int znet_mb_run(IMB_MGR *manager, int seal, const uint8_t key[32], const uint8_t nonce[12], const uint8_t *aad,
                size_t aad_length, uint8_t *data, size_t length, uint8_t tag[16])
{
    IMB_JOB *job = IMB_GET_NEXT_JOB(manager);

    job->cipher_mode = IMB_CIPHER_CHACHA20_POLY1305;
    job->hash_alg = IMB_AUTH_CHACHA20_POLY1305;
    job->cipher_direction = seal ? IMB_DIR_ENCRYPT : IMB_DIR_DECRYPT;
    job->chain_order = seal ? IMB_ORDER_CIPHER_HASH : IMB_ORDER_HASH_CIPHER;
    job->enc_keys = key;
    job->dec_keys = key;
    job->key_len_in_bytes = 32;
    job->src = data;
    job->dst = data;
    job->cipher_start_src_offset_in_bytes = 0;
    job->hash_start_src_offset_in_bytes = 0;
    job->msg_len_to_cipher_in_bytes = length;
    job->msg_len_to_hash_in_bytes = length;
    job->iv = nonce;
    job->iv_len_in_bytes = 12;
    job->u.CHACHA20_POLY1305.aad = aad;
    job->u.CHACHA20_POLY1305.aad_len_in_bytes = aad_length;
    job->auth_tag_output = tag;
    job->auth_tag_output_len_in_bytes = 16;
    job = IMB_SUBMIT_JOB_NOCHECK(manager);
    return job != NULL && job->status == IMB_STATUS_COMPLETED;
}
