-- Orthanc: when a source series is stable, send it to the modality "dicomnode". Add the file to "LuaScripts" and the
-- node to "DicomModalities" as "dicomnode". What the node itself sent, and anything derived, stays: no loop can start.
local SOURCE = { CT = true, MR = true }

function OnStableSeries(seriesId, tags, metadata)
  if not SOURCE[tags['Modality']] then
    return
  end
  -- The arguments tell neither ImageType nor the sender: ask for the first instance.
  local first = ParseJson(RestApiGet('/series/' .. seriesId))['Instances'][1]
  local image = ParseJson(RestApiGet('/instances/' .. first .. '/simplified-tags'))
  if string.find(image['ImageType'] or '', 'DERIVED', 1, true) or image['Manufacturer'] == 'dicomnode' then
    return
  end
  RestApiPost('/modalities/dicomnode/store', DumpJson({ Resources = { seriesId }, Synchronous = false }))
end
