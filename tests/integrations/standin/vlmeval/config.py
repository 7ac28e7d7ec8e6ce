import vlmeval.vlm as vlm

supported_VLM = {"Other-VLM": vlm.BaseModel}
